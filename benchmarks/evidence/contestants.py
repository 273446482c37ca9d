"""Who takes part: one fixed configuration each, the same for all tasks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from adasel_stream.adaselection import Policy
from adasel_stream.importances import vote
from adasel_stream.methods import METHODS, NEEDS
from adasel_stream.policies import aligned, auto, paper, unbiased

__all__ = ["CONTESTANTS", "Contestant"]


@dataclass(frozen=True)
class Contestant:
    """A way to spend a budget of updates.

    Attributes:
        name: as in the results.
        kind: "all" rows, an "even" share of them, "selected" by a loader, or a "rule" of others.
        policy: makes the loader's policy.
        methods: candidate methods, or None for those of the policy.
        losses: where they come from: a "forward" pass of all candidates, the "own" record of what
            was trained on, or "serving", whose passes are not the trainer's.
        single: whether it is one of the paper's candidate methods, or of its related work, alone.
    """

    name: str
    kind: Literal["all", "even", "selected", "rule"]
    policy: Callable[[], Policy] = auto
    methods: tuple[str, ...] | None = None
    losses: Literal["forward", "own", "serving"] = "forward"
    single: bool = False


def top_k() -> Policy:
    """Choose the k rows that one method prefers, with weight 1.

    By votes, since a method's own k rows need not be those of its largest values.
    """
    return replace(paper(), name="top-k", importances=vote, update=None, whole_batches=False)


def in_proportion() -> Policy:
    """Draw rows in proportion to what one method gives, with importance weights."""
    return replace(unbiased(), name="in proportion", learn=None, kernel=None)


PAPER_METHODS = (
    *("uniform", "big_loss", "small_loss", "gradient_norm"),
    *("adaboost", "coresets_1", "coresets_2"),
)

CHANCES = frozenset(
    {"selective_backprop", "loss_history", "learnability", "soft_prune", "gradient_size"}
)
"""Methods that say how often to draw a row; the others say which rows come first."""


def single(name: str) -> Contestant:
    """Give a method alone."""
    chances = name in CHANCES
    needs_record = "previous" in NEEDS[METHODS[name]]
    return Contestant(
        name,
        "selected",
        policy=in_proportion if chances else top_k,
        methods=(name,),
        losses="own" if needs_record else "forward",
        single=True,
    )


_ALL = (
    Contestant("full", "all"),
    Contestant("full, equal updates", "all"),
    Contestant("uniform", "even"),
    Contestant("auto", "selected", auto),
    Contestant("unbiased", "selected", unbiased),
    Contestant("aligned", "selected", aligned),
    Contestant("paper", "selected", paper, PAPER_METHODS),
    Contestant("auto + serving", "selected", auto, losses="serving"),
    Contestant("auto + record", "selected", auto, losses="own"),
    Contestant("unbiased + serving", "selected", unbiased, losses="serving"),
    *(single(name) for name in METHODS if name != "uniform"),
    Contestant("infobatch rule", "rule"),
    Contestant("selective-backprop rule", "rule"),
)

CONTESTANTS: dict[str, Contestant] = {one.name: one for one in _ALL}
"""Every contestant by its name. RHO is the method `reducible_loss`: the top of each window of
candidates by loss minus that of a model that was trained on rows kept aside."""
