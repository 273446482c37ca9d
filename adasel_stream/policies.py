"""Ready policies: the paper's, and the unbiased one that production starts from.

A policy of your own is another `Policy`; every field is a function that can stand alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from adasel_stream import draw, importances
from adasel_stream.adaselection import Policy, curriculum, expected_losses, picked_losses
from adasel_stream.kernel import unbiased_by_ranks
from adasel_stream.updates import loss_ratio, progress, variance

__all__ = ["POLICIES", "paper", "resolve_policy", "unbiased"]


def paper(*, beta: float = 0.5, curriculum_exponent: float | None = None) -> Policy:
    """Select as Eq. (2) to (6) say: softmax importances, Eq. (3), top-k, weight 1.

    Args:
        beta: β of Eq. (3), in [-1, 1].
        curriculum_exponent: exponent of t in Eq. (4); None turns the reward off. The paper's
            text asks for a negative one, such as -sampling_rate; its formula for a positive.

    Raises:
        ValueError: beta outside [-1, 1].

    >>> paper(beta=1.0).name
    'paper'
    """
    if not -1 <= beta <= 1:
        raise ValueError(f"beta must be in [-1, 1], got {beta}")
    return Policy(
        name="paper",
        importances=importances.softmax,
        method_losses=picked_losses,
        choose=draw.top,
        update=partial(loss_ratio, beta=beta),
        reward=None if curriculum_exponent is None else curriculum(curriculum_exponent),
        noisy=True,
        whole_batches=True,
        settings={"beta": beta, "curriculum_exponent": curriculum_exponent},
    )


def unbiased(
    *,
    exploration: float = 0.2,
    update: Literal["variance", "progress", "none"] = "variance",
    floor: float = 0.02,
) -> Policy:
    """Draw rows by a mixture of methods and weigh them so that the gradient stays unbiased.

    Args:
        exploration: share of the draw that is even, in (0, 1]; weights are at most 1/exploration.
        update: `variance` learns which method draws the rows with large losses best, `progress`
            whose losses fall, `none` keeps equal weights.
        floor: least weight of each method, in [0, 1/M].

    Raises:
        ValueError: exploration outside (0, 1], floor negative, or an unknown update.

    >>> unbiased(exploration=0.1).floor
    0.02
    """
    if not 0 < exploration <= 1:
        raise ValueError(f"exploration must be in (0, 1], got {exploration}")
    if update not in ("variance", "progress", "none"):
        raise ValueError(f"update must be 'variance', 'progress' or 'none', got {update!r}")
    if not 0 <= floor < 1:
        raise ValueError(f"floor must be in [0, 1/M], got {floor}")
    return Policy(
        name="unbiased",
        importances=importances.rank,
        method_losses=picked_losses if update == "progress" else expected_losses,
        choose=partial(draw.unbiased, exploration=exploration),
        update=progress if update == "progress" else None,
        learn=variance if update == "variance" else None,
        floor=floor,
        kernel=None
        if update == "progress"
        else partial(unbiased_by_ranks, exploration=exploration, floor=floor),
        settings={"exploration": exploration, "update": update, "floor": floor},
    )


POLICIES: dict[str, Callable[[], Policy]] = {"paper": paper, "unbiased": unbiased}
"""Policies by name, with their default settings when called."""


def resolve_policy(policy: str | Policy) -> Policy:
    """Look a policy up by name; a `Policy` is taken as it is.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a `Policy`.

    >>> resolve_policy("paper").name
    'paper'
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str):
        raise TypeError(f"policy must be a name or a Policy, got {type(policy).__name__}")
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; known are {', '.join(POLICIES)}")
    return POLICIES[policy]()
