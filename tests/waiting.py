"""Find whatever would make the host wait for an accelerator, on a machine that has none.

`NoWaiting` raises on every operation that needs a device's numbers on the host. `pretended_device`
gives tensors a device that is no CPU and never finishes anything: torch's fake tensors carry
shapes and devices without numbers, so that an operation whose result depends on numbers cannot
even be computed, and no event is ever done.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.nonzero_numpy,
    aten.argwhere,
    aten.masked_select,
    aten.unique_dim,
    aten.unique_consecutive,
    aten._unique,
    aten._unique2,
    aten.bincount,
    aten.histc,
    aten.histogram,
    aten.repeat_interleave,
}
"""Operations that read numbers on the host, or whose result has a shape that depends on them."""

DEVICE = "lazy"
"""A device type that every build of torch knows by name."""


class WaitedError(BaseException):
    """An operation that waits for the device; no exception that anyone may handle."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call] # untyped in torch
    """Raise on every operation that waits for a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at one operation, then let it run."""
        kwargs = kwargs or {}
        self.operations += 1
        if (
            func.overloadpacket in WAITING
            or _indexes_by_mask(func, args)
            or _copies(func, args, kwargs)
        ):
            raise WaitedError(str(func))
        return func(*args, **kwargs)


def _indexes_by_mask(func: Any, args: tuple[Any, ...]) -> bool:
    if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index):
        return False
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _copies(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Say whether a copy between devices makes the host wait."""
    if func.overloadpacket is aten._to_copy:
        source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        non_blocking = kwargs.get("non_blocking", False)
    elif func.overloadpacket in (aten.copy_, aten.copy):
        source, target = args[1].device, args[0].device
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    else:
        return False
    return bool(source.type != target.type and not non_blocking)


class PretendedGenerator(torch.Generator):
    """Randomness that says it is on a device; the numbers are never drawn."""

    def __new__(cls, device: torch.device | str = "cpu") -> "PretendedGenerator":
        """Make one that remembers its device."""
        made: PretendedGenerator = super().__new__(cls)
        made.pretended = torch.device(device)  # type: ignore[attr-defined] # declared nowhere
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override] # an attribute in the stubs
        """Where it says it is."""
        pretended: torch.device = self.pretended  # type: ignore[attr-defined]
        return pretended


class NeverDone:
    """An event of a device that never gets there."""

    def __init__(self, device: torch.device) -> None:
        """Take what `torch.Event` takes."""

    def record(self) -> None:
        """Mark the place."""

    def query(self) -> bool:
        """Say that the device is not there yet."""
        return False

    def synchronize(self) -> None:
        """Wait, which is what must not happen."""
        raise WaitedError("synchronize")


@contextmanager
def pretended_device(patch: pytest.MonkeyPatch) -> Generator[None]:
    """Run the block with fake tensors, which can be made on `DEVICE` and meet real ones.

    The two patches stand for what a build without accelerators cannot make.
    """
    patch.setattr(torch, "Generator", PretendedGenerator)
    patch.setattr(torch, "Event", NeverDone)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


WAYS_TO_WAIT: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: t.max().item(),
    "float": lambda t: float(t.sum()),
    "truth": lambda t: bool((t > 0).any()),
    "nonzero": lambda t: t.nonzero(),
    "mask": lambda t: t[t > 0],
    "assignment by mask": lambda t: t.clone().__setitem__(t > 0, t),
    "masked select": lambda t: t.masked_select(t > 0),
    "unique": lambda t: t.unique(),  # type: ignore[no-untyped-call]
    "equal": lambda t: torch.equal(t, t + 1),
    "repeat": lambda t: t.repeat_interleave(t.long().clamp(min=1)),
    "to the host": lambda t: t.cpu(),
    "list": lambda t: t.tolist(),
    "numpy": lambda t: t.cpu().numpy(),
    "from the host": lambda t: torch.ones(3, device="cpu").to(t.device),
}
"""Ways in which a user's method, or we, could make the host wait."""

UNSEEN_ON_A_CPU = {"to the host", "list", "numpy", "from the host"}
"""Ways that do nothing special where host and device are one."""
