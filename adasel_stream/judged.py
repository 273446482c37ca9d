"""Candidates with their losses, on their way from where those were found to the choice."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.lookups import Float32s, Int64s
from adasel_stream.rows import Leaves
from adasel_stream.types import Scored

__all__ = ["Judged"]


class Judged(NamedTuple):
    """Candidates with their losses, and where those came from.

    Attributes:
        leaves: the candidates, flattened, b rows each.
        scored: losses, shape (b,), with last-layer quantities if every row was scored.
        fresh: rows that were scored now, shape (b,), bool.
        ids: instance ids, shape (b,), int64, or None without a record.
        recorded: what the record held, shape (b, 2), float32: the loss, NaN where it is unknown,
            and its age in seconds; None without a record.
        guessed: rows whose loss nobody knows and the stream's mean stands for, shape (b,), bool,
            or None where there are none.
        decoded: the candidates decoded, b rows each, or None where they were not.
        reference: losses under a reference model, shape (b,), NaN where unknown, or None.
    """

    leaves: Leaves
    scored: Scored
    fresh: npt.NDArray[np.bool_]
    ids: Int64s | None = None
    recorded: Float32s | None = None
    guessed: npt.NDArray[np.bool_] | None = None
    decoded: Leaves | None = None
    reference: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether any loss is more than a guess."""
        return self.guessed is None or not self.guessed.all()

    @property
    def told(self) -> Tensor:
        """Losses, shape (b,), NaN where nobody knows them."""
        if self.guessed is None:
            return self.scored.losses
        guessed = torch.from_numpy(self.guessed).to(self.scored.losses.device, non_blocking=True)
        return torch.where(guessed, torch.nan, self.scored.losses)

    @property
    def company(self) -> dict[str, Tensor | None]:
        """What a choice may look at beside the losses, each of shape (b,) or None."""
        device, previous = self.scored.losses.device, None
        if self.recorded is not None:
            previous = torch.from_numpy(self.recorded[:, 0]).to(device, non_blocking=True)
        reference = self.reference
        if reference is not None:
            reference = reference.to(device, non_blocking=True)
        told = None if self.guessed is None else self.told
        return {"reference": reference, "previous": previous, "told": told}

    @property
    def ages_s(self) -> Float32s:
        """Ages of the recorded losses that were reused, in seconds, shape (n,)."""
        if self.recorded is None:
            return np.zeros(0, dtype=np.float32)
        ages_s: Float32s = self.recorded[~np.isnan(self.recorded[:, 0]), 1]
        return ages_s
