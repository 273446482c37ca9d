"""Which engine computes: numba's where it is installed, numpy's everywhere."""

from typing import Final

from adasel_stream.record.engine import Engine
from adasel_stream.record.numpy_engine import NumpyEngine
from adasel_stream.record.table import Table

__all__ = ["ENGINES", "make_engine"]

ENGINES: Final = ("auto", "numpy", "numba")
"""What `LossRecord` takes as engine."""


def make_engine(name: str, table: Table, seed: int) -> Engine:
    """Return the engine of a name; "auto" takes numba where it can be imported.

    Raises:
        ValueError: if there is none of that name, or numba cannot be imported.

    >>> make_engine("numpy", Table(buckets=2), seed=0).name
    'numpy'
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name != "numpy":
        # only here, since importing numba takes half a second; installed beside a numpy that it
        # does not support, it raises as if it were not there
        try:
            from adasel_stream.record.numba_engine import NumbaEngine

            return NumbaEngine(table, seed)
        except ImportError as error:
            if name == "numba":
                raise ValueError(
                    f"engine='numba' needs numba, which cannot be imported ({error}): "
                    "run pip install 'adasel-stream[fast]', or pass engine='auto'"
                ) from error
    return NumpyEngine(table, seed)
