"""Who takes part in the evidence, and that each chooses what its name says."""

import doctest
import importlib
import pkgutil
from typing import Any

import pytest
import torch

import benchmarks.evidence
from adasel_stream.adaselection import step
from adasel_stream.last_layer import LastLayer
from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.methods import METHODS
from adasel_stream.policies import POLICIES
from adasel_stream.selection import State
from benchmarks.evidence.contestants import CHANCES, CONTESTANTS, PAPER_METHODS
from benchmarks.evidence.quick import GRID, ORDERINGS, judge
from benchmarks.evidence.rules import RULES
from benchmarks.evidence.store import Cell
from benchmarks.evidence.tasks import TASKS

SINGLES = [name for name, one in CONTESTANTS.items() if one.single]


def batch() -> LossBatch:
    """Give candidates with everything that a method may look at; losses are far apart."""
    random = torch.Generator().manual_seed(0)
    losses = torch.rand(40, generator=random) * 400
    parts = (torch.randn(40, 3, generator=random) for _ in range(2))
    return LossBatch(
        losses,
        noise=torch.randn(40, generator=random),
        gradient_norms=torch.rand(40, generator=random),
        last_layer=LastLayer(*parts),
        reference=losses + torch.randn(40, generator=random) * 200,
        previous=torch.rand(40, generator=random),
        window=torch.rand(500, generator=random) * 400,
    )


def test_all_policies_and_methods_take_part() -> None:
    """A policy or a method that is added is a contestant, or this says so."""
    assert set(POLICIES) <= set(CONTESTANTS)
    assert set(METHODS) <= set(CONTESTANTS)
    assert set(RULES) <= set(CONTESTANTS)
    assert CONTESTANTS["paper"].methods == PAPER_METHODS


def test_methods_that_give_chances_are_drawn_by_them() -> None:
    """A method that says how often, and has no order of its own, is not cut at its top k."""
    wanted = {name: METHODS[name](batch()) for name in METHODS}
    chances = {
        name
        for name, one in wanted.items()
        if isinstance(one, Preference) and one.proportional and one.order is None
    }
    assert chances == CHANCES


@pytest.mark.parametrize("name", [name for name in SINGLES if name not in CHANCES])
def test_a_single_method_chooses_its_own_rows(name: str) -> None:
    """The chosen rows are the k first in the method's own order, with weight 1."""
    preference = METHODS[name](batch())
    assert isinstance(preference, Preference)
    order = preference.values() if preference.order is None else preference.order(10)
    _, selection = step(
        State.initial(1), batch(), 10, {name: METHODS[name]}, CONTESTANTS[name].policy()
    )
    assert set(selection.indices.tolist()) == set(order.topk(10).indices.tolist())
    assert selection.weights.eq(1).all()


def result(value: float, ratio: float) -> dict[str, Any]:
    """Give what the judge looks at."""
    return {"value": value, "quality": {"predicted / actual": ratio}}


def rows_in_order(better: float, worse: float, ratio: float = 1.01) -> dict[Cell, dict[str, Any]]:
    """Give rows in which full training, then ours, uniform, and the others come."""
    values = dict(
        zip(
            ("full", "auto", "unbiased", "uniform", "big_loss", "small_loss"),
            (better, better + 1, better + 1, better + 2, worse, worse),
            strict=True,
        )
    )
    return {
        Cell(task, name, 0.2, seed, "updates"): result(value, ratio)
        for task in GRID.tasks
        for name, value in values.items()
        for seed in range(3)
    }


def test_quick_tells_right_from_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """All orderings hold: 0. One does not, or a run diverged: 1, and the line says which."""
    assert judge(rows_in_order(1.0, 9.0)) == 0
    assert "NOT" not in capsys.readouterr().out
    assert judge(rows_in_order(1.0, 2.5)) == 1
    assert "click: uniform 3.0000 NOT better than big_loss 2.5000" in capsys.readouterr().out
    assert judge(rows_in_order(float("nan"), 9.0)) == 1
    capsys.readouterr()
    assert judge(rows_in_order(1.0, 9.0, ratio=1.1)) == 1
    assert "actual of auto 1.100, calibration NOT kept" in capsys.readouterr().out


def test_quick_runs_all_that_it_judges() -> None:
    """Every ordering is between contestants and tasks of its grid, which need no data."""
    for task, better, worse in ORDERINGS:
        assert task in GRID.tasks
        assert {better, worse} <= set(GRID.contestants)
        assert TASKS[task].make(None, 0)


MODULES = [
    one.name for one in pkgutil.walk_packages(benchmarks.evidence.__path__, "benchmarks.evidence.")
]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_hold(name: str) -> None:
    """What docstrings show is what comes out; pytest looks for them in the package only."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0
