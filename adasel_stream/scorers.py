"""Losses of candidates from a forward pass that leaves no trace in training.

The model is scored in eval mode and without gradients; afterwards its training flags, its
buffers, the random state and the grad mode are what they were.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn

from adasel_stream.errors import ScoreError
from adasel_stream.types import Batch, Scored

__all__ = ["ModelScorer", "Score", "checked", "gradient_norms"]

Score: TypeAlias = Callable[[Batch], Tensor | Scored]
"""From a candidate batch to its losses, shape (b,), alone or with last-layer quantities."""


class ModelScorer:
    """Score with a model, as if it had never been called.

    Args:
        score: gives losses (b,) of a batch; it calls the model itself.
        model: the model that `score` calls.
        autocast: dtype to autocast the forward pass to, or None for none.
        last_layer: whether to capture the input of the last linear layer and the gradient of
            the losses with respect to its output, for `gradient_norm`.

    The gradient needs the loss alone to be differentiated, never the model: the graph starts
    at the last layer's output.

    Source: Katharopoulos and Fleuret 2018, section 3.2, for the last-layer quantities.

    >>> model = nn.Linear(3, 2)
    >>> scorer = ModelScorer(lambda x: model(x).square().sum(1), model, last_layer=True)
    >>> scored = scorer(torch.ones(4, 3))
    >>> tuple(scored.residuals.shape), tuple(scored.features.shape), scored.losses.requires_grad
    ((4, 2), (4, 3), False)
    """

    def __init__(
        self,
        score: Score,
        model: nn.Module,
        *,
        autocast: torch.dtype | None = None,
        last_layer: bool = False,
    ) -> None:
        self._score = score
        self._model = model
        self._autocast = autocast
        self._last_layer = last_layer
        self._head: nn.Linear | None = None
        self._writes: set[str] | None = None  # buffers that the model writes even in eval mode

    def __call__(self, batch: Batch) -> Scored:
        """Give losses (b,) and, if asked for, residuals (b, c) and features (b, h).

        Raises:
            ScoreError: no linear layer took part although `last_layer` was asked for.
        """
        with self._untouched(), self._autocasting():
            if not self._last_layer:
                return as_scored(self._score(batch))
            if self._head is None:
                self._head = self._find_head(batch)
            return self._capture(batch, self._head)

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        modules = list(self._model.modules())
        training = [module.training for module in modules]
        names = self._writes
        # views share the version counter, so a write in place shows in them as well
        before = {n: (b, b._version) for n, b in self._model.named_buffers()}
        kept = {n: b.clone() for n, (b, _) in before.items() if names is None or n in names}
        devices = {p.device for p in self._model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            # no_grad, not inference_mode: what a model caches while scoring must stay usable
            self._model.eval()
            try:
                yield
            finally:
                for module, mode in zip(modules, training, strict=True):
                    module.training = mode
                self._restore_buffers(before, kept)

    def _restore_buffers(
        self, before: dict[str, tuple[Tensor, int]], kept: dict[str, Tensor]
    ) -> None:
        written: set[str] = set()
        for name, buffer in self._model.named_buffers():
            original, version = before.get(name, (buffer, buffer._version))
            if buffer is original and buffer._version == version:
                continue
            written.add(name)
            if name in kept:
                original.copy_(kept[name])
                owner, _, leaf = name.rpartition(".")
                setattr(self._model.get_submodule(owner), leaf, original)
            else:
                warnings.warn(
                    f"the model wrote its buffer {name!r} while it was scored, for the first time; "
                    "that write stays, later ones will be undone",
                    RuntimeWarning,
                    stacklevel=5,
                )
        self._writes = written | (self._writes or set())

    def _autocasting(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        device = next((p.device.type for p in self._model.parameters()), "cpu")
        return torch.autocast(device, dtype=self._autocast)

    def _find_head(self, batch: Batch) -> nn.Linear:
        called: list[nn.Linear] = []

        def note(module: nn.Module, _args: object, _output: object) -> None:
            if isinstance(module, nn.Linear):
                called.append(module)

        linear = [m for m in self._model.modules() if isinstance(m, nn.Linear)]
        hooks = [module.register_forward_hook(note) for module in linear]
        try:
            self._score(batch)
        finally:
            for hook in hooks:
                hook.remove()
        if not called:
            raise ScoreError(
                f"no nn.Linear of {type(self._model).__name__} took part in scoring, so there is "
                "no last layer to take gradient norms from; let score return "
                "Scored(losses, residuals, features)"
            )
        return called[-1]

    def _capture(self, batch: Batch, head: nn.Linear) -> Scored:
        seen: list[tuple[Tensor, Tensor]] = []

        def start_graph(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            seen.append((args[0].detach(), leaf))
            torch.set_grad_enabled(True)  # until `_untouched` sets it back
            return leaf

        hook = head.register_forward_hook(start_graph)
        try:
            losses = as_scored(self._score(batch)).losses
        finally:
            hook.remove()
        features, output = seen[-1]
        if losses.ndim == 0:
            return Scored(losses.detach())
        (residuals,) = torch.autograd.grad(losses.sum(), output, allow_unused=True)
        if residuals is None or output.shape[0] != losses.shape[0]:
            raise ScoreError(
                f"the last linear layer gave an output of shape {tuple(output.shape)} that the "
                f"losses, shape {tuple(losses.shape)}, do not follow row by row; let score return "
                "Scored(losses, residuals, features)"
            )
        return Scored(losses.detach(), residuals, features)


def as_scored(result: Tensor | Scored) -> Scored:
    """Wrap bare losses."""
    return result if isinstance(result, Scored) else Scored(result)


def checked(scored: Scored, rows: int) -> Scored:
    """Make sure that there is one floating-point loss per row, and drop its graph.

    Raises:
        ScoreError: anything else, a mean loss above all.
    """
    losses = scored.losses
    if not isinstance(losses, Tensor):  # type: ignore[redundant-expr]  # callers are not typed
        raise ScoreError(f"score returned {type(losses).__name__}, expected a tensor of losses")
    if losses.ndim == 0:
        raise ScoreError(
            "score returned a scalar loss, expected one loss per row; "
            'compute it with reduction="none"'
        )
    if losses.shape != (rows,):
        raise ScoreError(
            f"score returned losses of shape {tuple(losses.shape)}, expected ({rows},): one loss "
            "per row; average or sum over the other dimensions"
        )
    if not losses.is_floating_point():
        raise ScoreError(f"score returned losses of dtype {losses.dtype}, expected floating point")
    losses = losses.detach()
    if losses.dtype in (torch.float16, torch.bfloat16):
        losses = losses.float()
    return Scored(losses, scored.residuals, scored.features)


def gradient_norms(scored: Scored) -> Tensor | None:
    """Bound each row's gradient norm by its last layer: ‖∂l/∂z‖ · ‖[h, 1]‖, shape (b,).

    Dimensions between the rows and the last one, such as tokens, are summed over.

    Source: Katharopoulos and Fleuret 2018, section 3.2.

    >>> scored = Scored(torch.ones(1), torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    >>> gradient_norms(scored)
    tensor([5.])
    """
    if scored.residuals is None or scored.features is None:
        return None
    residual = scored.residuals.to(scored.losses.dtype).norm(dim=-1)
    feature = (scored.features.to(scored.losses.dtype).square().sum(-1) + 1).sqrt()
    norms = residual * feature
    return norms.flatten(1).sum(1) if norms.ndim > 1 else norms
