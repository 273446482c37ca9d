"""Candidate methods: what each one would rather train on.

A method is a function of a `LossBatch`. It returns one preference per candidate, any finite
number, larger for the rows it wants; how preferences become importances is the policy's choice
(see `adaselection`). A method of your own is such a function, passed to the loader as it is:

>>> def near_median(batch):
...     return -(batch.losses - batch.losses.median()).abs()
>>> near_median(LossBatch(torch.tensor([1.0, 5.0, 2.0])))
tensor([-1., -3., -0.])

Source: section 3.1 of the AdaSelection paper; `related_methods` has those of its related work.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from adasel_stream import related_methods as related
from adasel_stream.errors import MethodError
from adasel_stream.loss_batch import LossBatch, Method, Preference
from adasel_stream.ranking import top_k

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "NEEDS",
    "adaboost",
    "big_loss",
    "check_recorded",
    "coresets_1",
    "coresets_2",
    "gradient_norm",
    "last_layer_for",
    "needs",
    "resolve_methods",
    "small_loss",
    "uniform",
]

ADABOOST_MARGIN = 1e-6
"""Eq. (1) is infinite at loss 1, so the largest loss is scaled to one minus this."""


def uniform(batch: LossBatch) -> Preference:
    """Prefer rows at random: fresh noise ranks them, or all alike where the draw is random.

    >>> uniform(LossBatch(torch.tensor([1.0, 2.0]), noise=torch.tensor([0.3, -0.1]))).values()
    tensor([ 0.3000, -0.1000])
    """
    noise = batch.noise
    if noise is not None:
        return Preference(values=lambda: noise)
    return Preference(
        values=lambda: torch.zeros_like(batch.losses),
        ranks=lambda: torch.zeros_like(batch.losses),  # alike: any one rank will do
    )


def big_loss(batch: LossBatch) -> Preference:
    """Prefer large losses.

    Source: Selective-Backprop, the paper's reference [2].
    """
    return Preference(values=lambda: batch.losses, ranks=lambda: batch.ranks)


def small_loss(batch: LossBatch) -> Preference:
    """Prefer small losses.

    Source: Shah et al. 2020, the paper's reference [3].
    """
    return Preference(
        values=lambda: -batch.losses,
        ranks=lambda: (batch.count - 1) - batch.ranks,
    )


def gradient_norm(batch: LossBatch) -> Preference:
    """Prefer large bounds of the gradient norm, taken from the last layer.

    Raises:
        MethodError: the batch has no gradient norms.

    Source: Katharopoulos and Fleuret 2018, the paper's reference [5].
    """
    norms = batch.gradient_norms
    if norms is None:
        raise MethodError(
            "method 'gradient_norm' needs last-layer quantities, the batch has only losses; give "
            "the loader model= with a linear last layer, or let score return Scored(losses, "
            "residuals, features)"
        )
    return Preference(values=lambda: norms)


def adaboost(batch: LossBatch) -> Preference:
    """Prefer large losses by AdaBoost's weight, artanh of the loss scaled below 1.

    Departs from Eq. (1), which is undefined for losses of 1 and more: losses are shifted by
    their minimum if that is negative and divided by their maximum.

    Source: Eq. (1).
    """
    return Preference(values=lambda: _artanh_scaled(batch.losses), ranks=lambda: batch.ranks)


def coresets_1(batch: LossBatch) -> Preference:
    """Prefer both ends: the ⌈k/2⌉ largest and the ⌊k/2⌋ smallest losses.

    As softmax importances it is the mean of `big_loss` and `small_loss`. As ranks the two rows at
    distance d from the middle rank share the places 2d - 1 and 2d, whatever losses are equal.

    Source: section 3.1, coresets approximation 1.
    """

    def both_softmaxes() -> Tensor:
        largest = batch.masked(batch.losses).log_softmax(dim=0)
        smallest = batch.masked(-batch.losses).log_softmax(dim=0)
        return torch.logaddexp(largest, smallest)

    def distance_from_middle() -> Tensor:
        twice_distance = (2 * batch.ranks - (batch.count - 1)).abs()
        return (twice_distance - 0.5).clamp(min=0)

    return Preference(both_softmaxes, distance_from_middle, partial(_from_both_ends, batch))


def coresets_2(batch: LossBatch) -> Preference:
    """Prefer losses close to the batch's mean.

    Source: section 3.1, coresets approximation 2.
    """

    def closeness() -> Tensor:
        return -(batch.losses - batch.losses.mean()).abs()

    return Preference(closeness, ranks=lambda: batch.rank(closeness(), follows_losses=True))


def _artanh_scaled(losses: Tensor) -> Tensor:
    largest = losses.max()
    scale = largest - losses.min().clamp(max=0)
    scale = torch.where(scale > 0, scale, 1.0)
    q = (losses - losses.min().clamp(max=0)) / scale
    x = (1 - ADABOOST_MARGIN) * q
    # log(1-x), exact near q = 1 where x itself is rounded, and near q = 0 where 1-x is
    rest = (largest - losses) / scale + ADABOOST_MARGIN * q
    log_rest = torch.where(q > 0.5, rest.clamp(min=ADABOOST_MARGIN / 2).log(), (-x).log1p())
    return 0.5 * (x.log1p() - log_rest)  # Eq. (1)


def _from_both_ends(batch: LossBatch, _k: int) -> Tensor:
    """Order rows largest, smallest, second largest, second smallest; lower indices first."""
    turns = []
    for sign, first in ((1, 0), (-1, 1)):
        order = top_k(batch.masked(sign * batch.losses), batch.losses.shape[0])
        turn = torch.arange(first, 2 * order.shape[0], 2, device=order.device)
        turns.append(torch.empty_like(order).scatter_(0, order, turn))
    return -torch.minimum(*turns).to(batch.losses.dtype)


METHODS: dict[str, Method] = {
    "uniform": uniform,
    "big_loss": big_loss,
    "small_loss": small_loss,
    "gradient_norm": gradient_norm,
    "adaboost": adaboost,
    "coresets_1": coresets_1,
    "coresets_2": coresets_2,
    "selective_backprop": related.selective_backprop,
    "reducible_loss": related.reducible_loss,
    "one_backward": related.one_backward,
    "alignment": related.alignment,
    "gradient_size": related.gradient_size,
    "loss_history": related.loss_history,
    "learnability": related.learnability,
    "soft_prune": related.soft_prune,
}
"""The paper's seven candidate methods and those of its related work, by their names there."""

NEEDS: dict[Method, frozenset[str]] = {
    **dict.fromkeys(METHODS.values(), frozenset[str]()),
    gradient_norm: frozenset({"last_layer"}),
    related.alignment: frozenset({"last_layer"}),
    related.gradient_size: frozenset({"last_layer_if_any"}),
    related.reducible_loss: frozenset({"reference"}),
    related.loss_history: frozenset({"previous"}),
    related.selective_backprop: frozenset({"window"}),
    related.soft_prune: frozenset({"window"}),
}
"""What the built-in methods look at beside losses. Functions of a user are given all that costs no
forward pass: the window and what the record held."""

DEFAULT_METHODS = ("uniform", "big_loss", "small_loss", "coresets_1", "coresets_2")
"""The paper's methods that need losses only; `adaboost` ranks as `big_loss` does."""


def resolve_methods(
    methods: Sequence[str | Method] | Mapping[str, Method],
) -> dict[str, Method]:
    """Name the methods: built-in names are looked up, functions carry their own name.

    Args:
        methods: names of `METHODS` and functions, or a mapping from names to functions.

    Returns:
        functions by name, in the order given.

    Raises:
        ValueError: an unknown or repeated name, or no method at all.
        TypeError: something that is neither a name nor a function.

    >>> list(resolve_methods(["uniform", big_loss, "small_loss"]))
    ['uniform', 'big_loss', 'small_loss']
    """
    if isinstance(methods, str):
        raise TypeError(f"methods must be a list of names or functions, got the string {methods!r}")
    if isinstance(methods, Mapping):
        pairs = [(_checked(name, method), method) for name, method in methods.items()]
    elif isinstance(methods, Sequence):
        pairs = [_named(method) for method in methods]
    else:
        raise TypeError(
            "methods must be a list of names and functions, or a mapping from names to functions, "
            f"got {type(methods).__name__}"
        )
    if not pairs:
        raise ValueError("methods must name at least one method, got none")
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"methods must have different names, got {names}")
    return dict(pairs)


def needs(methods: Mapping[str, Method]) -> frozenset[str]:
    """Say what methods look at beside losses.

    Args:
        methods: functions by name.

    Returns:
        of "last_layer", "last_layer_if_any", "reference", "previous" and "window" those in need.

    >>> sorted(needs({"gradient_norm": gradient_norm, "mine": lambda batch: batch.losses}))
    ['last_layer', 'previous', 'window']
    """
    cheap = frozenset({"window", "previous"})
    return frozenset[str]().union(*(NEEDS.get(method, cheap) for method in methods.values()))


def check_recorded(methods: Mapping[str, Method], recorded: bool) -> None:
    """Refuse built-in methods that would look for recorded losses where there are none.

    Raises:
        ValueError: there is no record, and some of them compare with it.
    """
    blind = [name for name, method in methods.items() if "previous" in NEEDS.get(method, ())]
    if blind and not recorded:
        raise ValueError(
            f"methods {blind} compare losses with recorded ones, and there is no record; pass "
            "record= and ids=, or leave them out"
        )


def last_layer_for(
    wanted: frozenset[str], recorded: bool, *, bare: bool = False
) -> bool | Literal["if any"]:
    """Say whether a forward pass has to capture the last layer.

    Args:
        wanted: what `needs` gave.
        recorded: whether a record spares known rows that pass.
        bare: whether nobody expects one, so that it is left where it is not needed.

    Raises:
        ValueError: the last layer is needed of every row, and a record would spare some, or
            another model scores them.

    >>> last_layer_for(frozenset({"last_layer"}), False)
    True
    """
    if "last_layer" in wanted:
        if recorded or bare:
            other = "record= skips it for known rows" if recorded else "a Proxy is another model"
            raise ValueError(
                "methods 'gradient_norm' and 'alignment' and the policy 'aligned' need the last "
                f"layer of the model for every row, and {other}; leave one of them out"
            )
        return True
    return "if any" if "last_layer_if_any" in wanted and not bare else False


def _checked(name: str, method: Method) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a method must be a string, got {type(name).__name__}")
    if not callable(method):
        raise TypeError(
            f"methods[{name!r}] must be a function of a LossBatch, got {type(method).__name__}; "
            "built-in methods are given by name in a list"
        )
    return name


def _named(method: str | Method) -> tuple[str, Method]:
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
        return method, METHODS[method]
    if not callable(method):
        raise TypeError(f"a method must be a name or a function, got {type(method).__name__}")
    name = getattr(method, "__name__", "")
    if not name.isidentifier():
        raise ValueError(
            f"a method given as {name or type(method).__name__} has no usable name; pass a "
            "mapping {'name': function}"
        )
    return name, method
