"""Guards of a choice as a user declares them, and what they look at in each candidate batch."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.arguments import integer, number
from adasel_stream.errors import BatchError
from adasel_stream.guards import top_loss
from adasel_stream.loss_batch import Bounds, LossBatch
from adasel_stream.repeats import Repeats
from adasel_stream.types import Batch

__all__ = ["Guarding", "Guards", "guarding_for"]

_log = logging.getLogger(__name__)

_MOST_SLICES: Final = 16

_FEWEST_REPEATS: Final = 4
"""Below this the sketch takes one instance in a hundred for one that it is not."""


_SLICES: Final = (
    "a mapping from names to pairs of a function of a batch and a rate, such as "
    "{'new_users': (lambda b: b['age_days'] < 7, 0.5)}"
)


@dataclass(frozen=True)
class Guards:
    """What selection is held to, whatever its methods prefer.

    In a draw the estimate stays unbiased: rows that are held back weigh the more when they are
    drawn, and no weight passes the policy's bound. A slice's least rate may take a little of it.

    Args:
        cap: largest share of the chosen rows that may look suspicious, in (0, 1]; 1 for no cap. It
            cannot bind where cap times the sampling rate is tail or more.
        tail: share of each window's rows with the largest losses that look suspicious, in [0, 1):
            about as many as are believed to have wrong labels.
        repeats: rows that were chosen so often lately look suspicious, too; at least 4, None for
            never. It needs the loader's ids and record, and losses given to `loader.mean`; an
            instance that comes once in some 65,536 chosen rows is not repeated.
        slices: up to 16 named slices: a function of the candidate batch that gives its members,
            bool, shape (b,), and the least share of these members that is chosen on average, in
            [0, 1]. A row of several slices counts for the one with the highest rate; where all
            demands are more than is chosen they are met in part.

    Raises:
        ValueError: an argument out of its range.
        TypeError: a share that is no number, or slices that are no functions with a rate each.

    >>> guards = Guards(cap=0.2, slices={"new_users": (lambda b: b["age_days"] < 7, 0.5)})
    >>> guards.names
    ('new_users',)
    """

    cap: float = 1.0
    tail: float = 0.05
    repeats: int | None = None
    slices: Mapping[str, tuple[Callable[[Batch], Tensor], float]] = field(
        default_factory=dict[str, tuple[Callable[[Batch], Tensor], float]]
    )

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name, share in (("cap", self.cap), ("tail", self.tail)):
            number(name, share)
        if self.repeats is not None:
            integer("repeats", self.repeats)
        if not isinstance(self.slices, Mapping):
            raise TypeError(f"slices must be {_SLICES}, got {type(self.slices).__name__}")
        if not 0 < self.cap <= 1:
            raise ValueError(f"cap must be in (0, 1], got {self.cap}")
        if not 0 <= self.tail < 1:
            raise ValueError(f"tail must be in [0, 1), got {self.tail}")
        if self.repeats is not None and self.repeats < _FEWEST_REPEATS:
            raise ValueError(
                f"repeats must be at least {_FEWEST_REPEATS} or None, got {self.repeats}"
            )
        if self.cap == 1 and self.repeats is not None:
            raise ValueError("repeats has no effect without a cap below 1; pass cap=, such as 0.2")
        if len(self.slices) > _MOST_SLICES:
            raise ValueError(f"at most {_MOST_SLICES} slices can be named, got {len(self.slices)}")
        for name, slice_ in self.slices.items():
            if not isinstance(name, str):
                raise TypeError(f"the name of a slice must be a string, got {name!r}")
            if not (isinstance(slice_, tuple) and len(slice_) == 2 and callable(slice_[0])):
                raise TypeError(f"slices must be {_SLICES}, got {slice_!r} for {name!r}")
            _, rate = slice_
            number(f"the rate of slice {name!r}", rate)
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of slice {name!r} must be in [0, 1], got {rate}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slices, in order."""
        return tuple(self.slices)

    @property
    def promised(self) -> list[tuple[str, float]]:
        """Names of the slices and the rates they are to be chosen at, in order."""
        return [(name, rate) for name, (_, rate) in self.slices.items()]

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers, in plain data; a snapshot is only loaded under those it was taken with."""
        shares = {"cap": self.cap, "tail": self.tail, "repeats": self.repeats}
        return {**shares, "slices": dict(self.promised)}


def guarding_for(
    guards: Guards | None, sampling_rate: float, *, recorded: bool
) -> "Guarding | None":
    """Set guards to work, and say what cannot have an effect at this rate.

    Args:
        guards: what was declared, or None for nothing.
        sampling_rate: share of candidates that is chosen, in (0, 1].
        recorded: whether a record tells instances apart.

    Raises:
        TypeError: guards are something else.
        ValueError: repeats are to be counted and there is no record.

    >>> guarding_for(None, 0.2, recorded=False) is None
    True
    """
    if guards is None:
        return None
    if not isinstance(guards, Guards):
        raise TypeError(f"guards must be such as Guards(cap=0.2), got {type(guards).__name__}")
    if guards.repeats is not None and not recorded:
        raise ValueError(
            "guards.repeats needs record= and ids=, which tell instances apart; leave it out, or "
            "pass both"
        )
    if guards.cap < 1 and guards.repeats is None and guards.cap * sampling_rate >= guards.tail:
        _log.warning(
            "guards: cap=%g cannot bind at sampling_rate=%g, since %.3g of the candidates may be "
            "chosen rows of the tail, which are %g of them; raise tail above that, or lower cap "
            "below %.3g",
            *(guards.cap, sampling_rate, guards.cap * sampling_rate, guards.tail),
            guards.tail / sampling_rate,
        )
    return Guarding(guards)


class Guarding:
    """Guards at work.

    Args:
        guards: what was declared.

    Attributes:
        guards: the same.
        repeats: how often instances were chosen lately, or None where nobody asks.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.repeats = None if guards.repeats is None else Repeats()

    def held_to(
        self, batch: Batch, ids: npt.NDArray[np.int64] | None, rows: int, device: torch.device
    ) -> tuple[Callable[[LossBatch], Bounds], Tensor]:
        """Look at candidates, and say what a choice from them is held to.

        Args:
            batch: the candidates.
            ids: their instance ids, shape (b,), or None without a record.
            rows: how many they are, b.
            device: where their losses are.

        Returns:
            a function that gives the bounds, and the members of each slice, shape (S, b), bool.

        Raises:
            BatchError: a slice does not give one bool per row.
        """
        members = torch.zeros(0, rows, dtype=torch.bool, device=device)
        if self.guards.slices:
            found = [self._of_slice(name, batch, rows, device) for name in self.guards.names]
            members = torch.stack(found)
        repeated = self._repeated(ids, device)
        return partial(self._bounds, members=members, repeated=repeated), members

    def _repeated(self, ids: npt.NDArray[np.int64] | None, device: torch.device) -> Tensor | None:
        """Flag instances that were chosen often, shape (b,), bool, or None where nobody asks."""
        if self.repeats is None or self.guards.repeats is None or ids is None:
            return None
        often = self.repeats.count(ids) >= self.guards.repeats
        return torch.from_numpy(often).to(device, non_blocking=True)

    def _bounds(self, batch: LossBatch, members: Tensor, repeated: Tensor | None) -> Bounds:
        """Put together what a choice from a batch is held to."""
        flagged = top_loss(batch.ranks, batch.count, self.guards.tail)
        if repeated is not None:
            flagged = flagged | repeated
        own = [rate for _, rate in self.guards.slices.values()]
        highest_first = sorted(range(len(own)), key=lambda number: -own[number])
        if own:
            members = torch.stack([members[number] for number in highest_first])
        rates = torch.tensor([own[number] for number in highest_first])
        there = rates.to(batch.losses.device, batch.losses.dtype, non_blocking=True)
        return Bounds(flagged, self.guards.cap, members, there)

    def _of_slice(self, name: str, batch: Batch, rows: int, device: torch.device) -> Tensor:
        function, _ = self.guards.slices[name]
        try:
            found: Any = function(batch)
        except Exception as error:
            error.add_note(f"It came from the function of slice {name!r}, given a batch.")
            raise
        members = torch.as_tensor(found)
        if members.shape != (rows,) or members.dtype != torch.bool:
            raise BatchError(
                f"slice {name!r} gave shape {tuple(members.shape)} and dtype {members.dtype}, "
                f"expected ({rows},) and bool: whether each row belongs to it"
            )
        return members.to(device, non_blocking=True)
