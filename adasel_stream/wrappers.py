"""What is wrapped around a model for training, and shall stay out of scoring.

Compiled graphs know no hooks, and DistributedDataParallel takes a forward pass with gradients for
the beginning of a training step: it would exchange buffers now and wait for gradients later.
"""

import sys
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__ = ["active_replica", "all_alone", "alone", "eagerly"]

_EXCHANGES = ("require_forward_param_sync", "require_backward_grad_sync", "static_graph")


def eagerly() -> AbstractContextManager[Any]:
    """Let compiled models run uncompiled for a while.

    Nothing is compiled where torch's compiler was never loaded, and it is not loaded for this.

    >>> with eagerly():
    ...     nn.Linear(1, 1)(torch.ones(2, 1)).shape
    torch.Size([2, 1])
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    forced: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return forced


@contextmanager
def alone(modules: Iterable[nn.Module]) -> Generator[None]:
    """Let those of the modules that are replicated run without a word to other processes.

    Processes may then score different numbers of batches. The next training step is as if none
    had been scored.

    >>> with alone(nn.Linear(1, 1).modules()):
    ...     pass
    """
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, nn.parallel.DistributedDataParallel):
                stack.callback(vars(module).update, {n: vars(module)[n] for n in _EXCHANGES})
                vars(module).update(dict.fromkeys(_EXCHANGES, False))
        yield


@contextmanager
def all_alone() -> Generator[None]:
    """Do as `alone` for whatever replicated model is called, where nobody says which it is.

    >>> with all_alone():
    ...     pass
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    with ExitStack() as stack:

        def before(module: nn.Module, _args: object) -> None:
            stack.enter_context(alone([module, getattr(module, "_orig_mod", module)]))

        stack.callback(nn.modules.module.register_module_forward_pre_hook(before).remove)
        yield


def active_replica() -> list[nn.Module]:
    """Give the DistributedDataParallel whose forward pass is under way, if there is one.

    >>> active_replica()
    []
    """
    # a module does not know what it is wrapped in; torch's compiler asks in the same way
    active = nn.parallel.DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call] # pyright: ignore[reportPrivateUsage]
    return [] if active is None else [active]
