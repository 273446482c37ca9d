"""Numbers that leave the device without anyone waiting for them."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Late"]

Then: TypeAlias = Callable[..., None]
"""Takes the numbers as arrays, in the order they were sent."""


@dataclass(frozen=True, slots=True)
class _Parcel:
    tensors: tuple[Tensor, ...]
    sent: torch.Event
    then: Then


class Late:
    """Copies of small device tensors, handed on once they have arrived.

    On a CPU they arrive at once. On an accelerator they go to pinned memory beside the
    computation; `poll` hands on what has arrived and never waits.

    >>> late = Late()
    >>> late.send((torch.tensor([1.0, 2.0]),), lambda losses: print(losses.sum()))
    3.0
    """

    def __init__(self) -> None:
        self._under_way: deque[_Parcel] = deque()

    def __len__(self) -> int:
        """Count the parcels under way."""
        return len(self._under_way)

    def send(self, tensors: tuple[Tensor, ...], then: Then) -> None:
        """Copy tensors to the host and call `then` with them, now or at a later `poll`."""
        devices = {tensor.device for tensor in tensors if tensor.device.type != "cpu"}
        if not devices:
            then(*(_array(tensor) for tensor in tensors))
            return
        copies = tuple(_to_host(tensor) for tensor in tensors)
        sent = torch.Event(devices.pop())
        sent.record()
        self._under_way.append(_Parcel(copies, sent, then))

    def poll(self) -> None:
        """Hand on what has arrived, in order."""
        while self._under_way and self._under_way[0].sent.query():
            self._hand_on()

    def drain(self) -> None:
        """Wait for everything under way and hand it on; for checkpoints, not for steps."""
        while self._under_way:
            self._under_way[0].sent.synchronize()
            self._hand_on()

    def _hand_on(self) -> None:
        parcel = self._under_way.popleft()
        parcel.then(*(_array(tensor) for tensor in parcel.tensors))


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(
        tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda"
    )
    return host.copy_(tensor.detach(), non_blocking=True)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.detach().numpy()
