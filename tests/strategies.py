"""What the algorithm's tests are fed: the published vectors, and hypothesis batches.

The batches hold what streams really bring: ties, negative, huge and subnormal losses, NaN and
infinities, a single row, none at all.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

# the same cases in every run; a loaded machine is no failure
settings.register_profile("adasel", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("adasel")

Array: TypeAlias = npt.NDArray[np.float64]
Case: TypeAlias = dict[str, Any]
"""One published vector: id, reading, note, inputs, expect."""

_FILE = json.loads((Path(__file__).parent / "vectors.json").read_text(encoding="utf-8"))
VECTORS: dict[str, Case] = {case["id"]: case for case in _FILE["cases"]}
RTOL = {"float64": float(_FILE["rtol_float64"]), "float32": float(_FILE["rtol_float32"])}
METHOD_NAMES = {
    "grad_norm": "gradient_norm",
    "coreset1": "coresets_1",
    "coreset2": "coresets_2",
}
"""The vectors' names of methods where ours, those of the literature, differ."""

METHODS = (
    "uniform",
    "big_loss",
    "small_loss",
    "gradient_norm",
    "adaboost",
    "coresets_1",
    "coresets_2",
)
MOST_ROWS = 40
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
_ORDINARY = st.floats(-10, 10, width=32, allow_subnormal=False)
_TIES = st.integers(-2, 3).map(float)
_HUGE = st.sampled_from([1e30, -1e30, 3e29, 0.0, 1.0])
_SUBNORMAL = st.sampled_from([0.0, 1e-45, 1e-40, 1.5e-39, 1e-38])


def array(values: object) -> Array:
    """A float64 array of a vector's numbers."""
    return np.array(values, dtype=np.float64)


def ours(vector_name: str) -> str:
    """Our name of a method of the vectors."""
    return METHOD_NAMES.get(vector_name, vector_name)


def rows_of(
    values: st.SearchStrategy[float], smallest: int = 0, largest: int = MOST_ROWS
) -> st.SearchStrategy[Array]:
    """Batches of such values, float64, shape (n,)."""
    return st.lists(values, min_size=smallest, max_size=largest).map(array)


def _all_equal(smallest: int) -> st.SearchStrategy[Array]:
    sizes = st.integers(smallest, MOST_ROWS)
    return st.builds(lambda size, value: np.full(size, value), sizes, _ORDINARY)


def tame_losses(smallest: int = 0) -> st.SearchStrategy[Array]:
    """Finite losses of ordinary size, ties and all-equal batches among them, shape (n,)."""
    return st.one_of(rows_of(_ORDINARY, smallest), rows_of(_TIES, smallest), _all_equal(smallest))


def finite_losses(smallest: int = 0) -> st.SearchStrategy[Array]:
    """Any finite losses in [-1e30, 1e30], huge and subnormal ones too, shape (n,)."""
    wild = st.one_of(_ORDINARY, _TIES, _HUGE, _SUBNORMAL)
    return st.one_of(
        tame_losses(smallest),
        rows_of(_HUGE, smallest),
        rows_of(_SUBNORMAL, smallest),
        rows_of(wild, smallest),
    )


def any_losses(smallest: int = 0) -> st.SearchStrategy[Array]:
    """Finite losses with rows of NaN and infinity among them, up to all of them."""
    broken = st.sampled_from(NOT_FINITE)
    return st.one_of(
        finite_losses(smallest),
        rows_of(st.one_of(_ORDINARY, broken), smallest),
        rows_of(st.one_of(_HUGE, _TIES, broken), smallest),
        rows_of(broken, smallest),
    )


def distinct_losses(smallest: int = 1) -> st.SearchStrategy[Array]:
    """Losses of ordinary size, no two within 1e-3, so that rounding reorders none."""
    thousandths = st.integers(-10_000, 10_000)
    unique = st.lists(thousandths, min_size=smallest, max_size=MOST_ROWS, unique=True)
    return unique.map(lambda values: array(values) / 1000)


def proposals(smallest: int = 1) -> st.SearchStrategy[Array]:
    """Positive distributions over up to 40 rows, as skewed as 1e-6 to 1, shape (n,)."""
    shares = rows_of(st.floats(1e-6, 1.0, allow_subnormal=False), smallest)
    return shares.map(lambda values: values / values.sum())


def rates() -> st.SearchStrategy[float]:
    """Sampling rates in (0, 1], with those that decimal fractions make awkward."""
    awkward = st.sampled_from([0.1, 0.2, 0.29, 0.3, 1 / 3, 0.7, 0.999, 1.0, 1e-3])
    return st.one_of(awkward, st.floats(1e-3, 1.0))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of generators."""
    return st.integers(0, 2**31 - 1)


def method_losses(methods: int) -> st.SearchStrategy[Array]:
    """Mean losses of so many methods, near zero and huge ones among them, shape (M,)."""
    values = st.one_of(_ORDINARY, _HUGE, st.sampled_from([0.0, 1e-13, 1e-12, -1e-12, 1e-11]))
    return rows_of(values, methods, methods)
