"""Ready policies: the paper's, an unbiased, an aligned, and the default that watches itself.

A policy of your own is another `Policy`; every field is a function that can stand alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from adasel_stream import draw, importances
from adasel_stream.adaselection import Policy, curriculum, expected_losses, picked_losses
from adasel_stream.arguments import number
from adasel_stream.kernel import aligned_by_ranks, unbiased_by_ranks
from adasel_stream.methods import DEFAULT_METHODS
from adasel_stream.paying import Rules
from adasel_stream.proportion import auto_in_proportion
from adasel_stream.updates import alignment, foreseen_variance, loss_ratio, progress, variance

__all__ = ["POLICIES", "aligned", "auto", "paper", "resolve_policy", "unbiased"]


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
    _check_exploration(exploration, floor)
    if update not in ("variance", "progress", "none"):
        raise ValueError(f"update must be 'variance', 'progress' or 'none', got {update!r}")
    return Policy(
        name="unbiased",
        importances=importances.chances,
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


def aligned(*, rate: float = 0.5, forgetting: float = 0.05) -> Policy:
    """Take the top-k of a mixture that follows the methods whose picks agree with all candidates.

    Biased on purpose: rows that pull against the mean gradient, such as those with wrong labels,
    are left out. It needs the last layer of every candidate, from the same forward pass.

    Args:
        rate: η of the weights' update, above 0.
        forgetting: share of log w that is lost at each step, in [0, 1).

    Raises:
        ValueError: an argument out of its range.

    >>> aligned().name
    'aligned'
    """
    if not rate > 0:
        raise ValueError(f"rate must be above 0, got {rate}")
    if not 0 <= forgetting < 1:
        raise ValueError(f"forgetting must be in [0, 1), got {forgetting}")
    foresee, floor = partial(alignment, rate=rate, forgetting=forgetting), 0.02
    return Policy(
        name="aligned",
        importances=importances.rank,
        method_losses=expected_losses,
        choose=draw.top,
        foresee=foresee,
        methods=(*DEFAULT_METHODS, "gradient_norm", "alignment"),
        needs=frozenset({"last_layer"}),
        floor=floor,
        noisy=True,
        kernel=partial(aligned_by_ranks, foresee=foresee, floor=floor),
        settings={"rate": rate, "forgetting": forgetting},
    )


def auto(
    *,
    exploration: float = 0.2,
    control: float = 0.05,
    judged_by: Literal["updates", "time"] = "updates",
    floor: float = 0.02,
) -> Policy:
    """Draw without bias by what is known of gradients, and fall back where that does not pay.

    Chances are proportional to what each method gives, and the mixture of methods follows the
    variance of the gradient estimate: gradient norms of all candidates' last layer where there are
    any, those of trained rows elsewhere. Rows are laid out by where they pull the model, so that
    those that are drawn represent the others (`draw.by_pull`). A control arm is drawn evenly, the
    gain over uniform is estimated all along, and where its interval excludes a gain, where losses
    turn non-finite or drift, where no gradient can be seen to judge by, or where the arithmetic
    says that it cannot pay, rows are drawn evenly until it is over (`paying`).

    Args:
        exploration: share of the draw that is even, in (0, 1]; weights are at most 1/exploration.
        control: share of the stream that is the control arm, in (0, 1).
        judged_by: what it must not lose to uniform at: as many "updates", or the same "time".
        floor: least weight of each method, in [0, 1/M].

    Raises:
        ValueError: an argument out of its range.

    >>> auto(control=0.1).watch.control
    0.1
    """
    _check_exploration(exploration, floor)
    return Policy(
        name="auto",
        importances=importances.proportional,
        method_losses=expected_losses,
        choose=partial(draw.unbiased, exploration=exploration, order=draw.by_pull),
        learn=variance,
        foresee=partial(foreseen_variance, exploration=exploration, floor=floor),
        methods=("uniform", "gradient_size", "learnability"),
        needs=frozenset({"last_layer_if_any"}),
        floor=floor,
        watch=Rules(control=control, judged_by=judged_by),
        kernel=partial(auto_in_proportion, exploration=exploration, floor=floor),
        settings={
            "exploration": exploration,
            "control": control,
            "judged_by": judged_by,
            "floor": floor,
        },
    )


def _check_exploration(exploration: float, floor: float) -> None:
    if not 0 < number("exploration", exploration) <= 1:
        raise ValueError(f"exploration must be in (0, 1], got {exploration}")
    if not 0 <= number("floor", floor) < 1:
        raise ValueError(f"floor must be in [0, 1/M], got {floor}")


POLICIES: dict[str, Callable[[], Policy]] = {
    "aligned": aligned,
    "auto": auto,
    "paper": paper,
    "unbiased": unbiased,
}
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
        came = type(policy).__name__
        if callable(policy):
            came += (
                f", a function that has to be called, as in {getattr(policy, '__name__', came)}()"
            )
        raise TypeError(f"policy must be a name or a Policy, got {came}")
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; known are {', '.join(POLICIES)}")
    return POLICIES[policy]()
