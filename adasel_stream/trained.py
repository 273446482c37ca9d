"""What gradients of trained rows have taught: how large they are at each loss, batch by batch."""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from adasel_stream.expected_norms import NormCurve, expected_norms, with_trained
from adasel_stream.selection import Feedback
from adasel_stream.updates import EVERY

__all__ = ["TrainedNorms"]

_PATIENCE: Final = 10
"""So many batches in a row may go by unseen, as where a trainer leaves them out."""

_AHEAD: Final = 8
"""So many batches more may be with a trainer that has not said anything of them yet."""


class TrainedNorms:
    """Count trained batches, and keep what their gradients say of losses.

    >>> trained = TrainedNorms()
    >>> [trained.count(first=2, always=False) for _ in range(8)]
    [1, 1, 0, 4, 0, 0, 0, 4]
    """

    def __init__(self) -> None:
        """Know nothing."""
        self._batches = 0
        self._silent = 0
        self._untold = 0
        self._curve: NormCurve | None = None

    def count(self, *, first: int, always: bool) -> int:
        """Count a batch that is trained on, and say for how many its gradients are to stand.

        Args:
            first: how many batches are all looked at, before one in a few is.
            always: whether this one is looked at in any case.

        Returns:
            1 or more, or 0 where it is not looked at.
        """
        self._batches, self._untold = self._batches + 1, 0
        stands_for = 1 if always or self._batches <= first else EVERY
        return stands_for if stands_for == 1 or self._batches % EVERY == 0 else 0

    @property
    def unseen(self) -> bool:
        """Whether gradients were looked for in vain, time and again."""
        return self._silent > _PATIENCE or self._untold > _PATIENCE + _AHEAD

    def emit(self) -> None:
        """Take in that a batch was given to the trainer, who is to tell its losses."""
        self._untold += 1

    def see(self, *, seen: bool) -> None:
        """Take in whether gradients of a batch that was looked at were seen."""
        self._silent = 0 if seen else self._silent + 1

    def learn(self, feedback: Feedback) -> None:
        """Take in rows that were trained on; without gradient norms they say nothing."""
        if feedback.gradient_norms is None:
            return
        device = feedback.losses.device
        curve = NormCurve.initial(device) if self._curve is None else self._curve.to(device)
        self._curve = with_trained(curve, feedback)

    def expected(self, losses: Tensor) -> Tensor | None:
        """Give √E[‖g‖² | loss], shape (b,), or None while nobody knows.

        Args:
            losses: shape (b,), NaN where there is none.
        """
        if self._curve is None or not self._curve.known:
            return None
        self._curve = self._curve.to(losses.device)
        return expected_norms(self._curve, losses)

    def state_dict(self) -> dict[str, Any]:
        """Describe what was taught."""
        curve = None if self._curve is None else self._curve.state_dict()
        counts = {"batches": self._batches, "silent": self._silent, "untold": self._untold}
        return {**counts, "curve": curve}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._batches, self._silent = int(state["batches"]), int(state["silent"])
        self._untold = int(state["untold"])
        curve = state["curve"]
        self._curve = None if curve is None else NormCurve.of_state(curve)
