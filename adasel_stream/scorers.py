"""Losses of candidates from a forward pass that leaves no trace in training.

The model is scored in eval mode and without gradients; afterwards its training flags, its
buffers, torch's random state and the grad mode are what they were.
"""

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from adasel_stream.errors import ScoreError
from adasel_stream.heads import Found, find_heads, last_layer_of
from adasel_stream.types import Batch, Scored
from adasel_stream.watching import watched
from adasel_stream.wrappers import all_alone, alone

__all__ = ["ModelScorer", "Score", "as_scored", "checked", "scorer_for"]

_log = logging.getLogger(__name__)

_Buffers: TypeAlias = dict[str, tuple[Tensor, int]]
"""Buffers by name, each with the version that its writes in place count up."""

_SMALL_BYTES = 1 << 20
"""Buffers up to this size are copied before every scoring."""

Score: TypeAlias = Callable[[Batch], Tensor | Scored]
"""From a candidate batch to its losses, shape (b,), alone or with last-layer quantities."""


class ModelScorer:
    """Score with a model, as if it had never been called.

    Args:
        score: gives losses (b,) of a batch; it calls the model itself.
        model: the model that `score` calls.
        autocast: dtype to autocast the forward pass to, or None for none.
        last_layer: whether to capture the input of the last linear layer and the gradient of
            the losses with respect to its output, as `heads` does: True for always, "if any" for
            where there is such a layer.

    Raises:
        TypeError: an argument of another type.

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
        last_layer: bool | Literal["if any"] = False,
    ) -> None:
        if not callable(score):
            raise TypeError(f"score must be a function of a batch, got {type(score).__name__}")
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(
                f"autocast must be a dtype such as torch.bfloat16, got {type(autocast).__name__}"
            )
        self._score = score
        self._model = model
        self._autocast = autocast
        self._last_layer: bool | Literal["if any"] = last_layer
        self._heads: tuple[nn.Linear, ...] = ()
        self._written: set[str] | None = None  # buffers seen to be written even in eval mode

    def __call__(self, batch: Batch) -> Scored:
        """Give losses (b,) and, if asked for, residuals (b, c) and features (b, h).

        Raises:
            ScoreError: `last_layer` is True and the losses do not come from one.
        """
        with self._untouched(), alone(self._model.modules()), self._autocasting():
            if self._last_layer:
                return self._with_last_layer(batch)
            return as_scored(self._score(batch))

    @contextmanager
    def _untouched(self) -> Generator[None]:
        training = [(module, module.training) for module in self._model.modules()]
        # views share the version counter, so a write in place shows in them as well
        before = {name: (b, b._version) for name, b in self._model.named_buffers()}
        kept = {name: b.clone() for name, (b, _) in before.items() if self._may_write(name, b)}
        gpus = {p.device for p in self._model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(gpus)), torch.no_grad():
            # no_grad, not inference_mode: what a model caches while scoring must stay usable
            try:
                self._model.eval()
                yield
            finally:
                for module, mode in training:
                    module.training = mode
                self._restore_buffers(before, kept)

    def _may_write(self, name: str, buffer: Tensor) -> bool:
        # a frozen table of a gigabyte is copied once, to see that it is not written
        return self._written is None or name in self._written or buffer.nbytes <= _SMALL_BYTES

    def _restore_buffers(self, before: _Buffers, kept: dict[str, Tensor]) -> None:
        after = dict(self._model.named_buffers())
        written = {
            name
            for name, (buffer, version) in before.items()
            if name in after and (after[name] is not buffer or buffer._version != version)
        }
        for name in written & kept.keys():
            buffer, _ = before[name]
            buffer.copy_(kept[name])
            owner, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(owner), leaf, buffer)
        if missed := written - kept.keys():
            warnings.warn(
                f"the model wrote its large buffers {sorted(missed)} while it was scored, which it "
                "had not done before; this write stays, later ones will be undone",
                RuntimeWarning,
                stacklevel=2,
            )
        self._written = written | (self._written or set())

    def _autocasting(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        device = next((p.device.type for p in self._model.parameters()), "cpu")
        return torch.autocast(device, dtype=self._autocast)

    def _with_last_layer(self, batch: Batch) -> Scored:
        """Score, and capture last-layer quantities unless the score brings its own."""

        def score() -> Scored:
            return as_scored(self._score(batch))

        if not self._heads:
            found = find_heads(self._model, score)
            self._heads = found.heads if found.sure else ()
        else:
            found = Found(watched(self._heads, score), self._heads)
        scored = found.seen.scored
        if not found.heads and not found.why:  # no bare losses; what they are is checked later
            self._last_layer = self._last_layer if scored.residuals is None else False
            return scored
        try:
            return last_layer_of(found)
        except ScoreError as error:
            if self._last_layer is True:
                raise
            _log.warning("gradients of the last layer are not used: %s", error)
            self._last_layer = False
            return Scored(scored.losses.detach())


def scorer_for(
    score: Score | None,
    model: nn.Module | None,
    *,
    autocast: torch.dtype | None,
    last_layer: bool | Literal["if any"],
) -> Score | None:
    """Wrap the score in a `ModelScorer` where there is a model; arguments as there.

    Without one, where the last layer would be of use, a score that gives losses alone is told of.

    Raises:
        ValueError: a model without score, or autocast without model.
        TypeError: an argument of another type.

    >>> scorer_for(None, None, autocast=None, last_layer=False) is None
    True
    """
    if model is None:
        if autocast is not None:
            raise ValueError("autocast= needs model=, whose forward pass it is for")
        return _bare(score, tell=last_layer == "if any") if callable(score) else score
    if score is None:
        raise ValueError("model= needs score=, the function that gets losses from it")
    return ModelScorer(score, model, autocast=autocast, last_layer=last_layer)


def _bare(score: Score, *, tell: bool) -> Score:
    """Score without a word to other processes, whatever the score calls.

    Args:
        score: gives losses.
        tell: whether to say once that the policy could do more, where it gives losses alone.
    """
    told = not tell

    @wraps(score)
    def scored(batch: Batch) -> Scored:
        nonlocal told
        with all_alone():
            result = as_scored(score(batch))
        if result.last_layer is None and not told:
            told = True
            _log.warning(
                "rows are chosen by what their losses say of gradients, which gains less than by "
                "gradients of the last layer: pass model=, which score calls, or let score return "
                "Scored(losses, residuals, features)"
            )
        return result

    return scored


def as_scored(result: Tensor | Scored) -> Scored:
    """Wrap bare losses."""
    return result if isinstance(result, Scored) else Scored(result)


def checked(scored: Scored, rows: int) -> Scored:
    """Make sure that there is one loss per row, without graph and as float32.

    Raises:
        ScoreError: anything else, a mean loss above all.

    >>> checked(Scored(torch.tensor([1.0, 2.0], dtype=torch.float64)), 2).losses
    tensor([1., 2.])
    """
    losses = scored.losses
    if not isinstance(losses, Tensor):
        raise ScoreError(f"score returned {type(losses).__name__}, expected a tensor of losses")
    if losses.ndim == 0:
        raise ScoreError(
            "score returned a scalar loss, expected one loss per row; "
            'compute it with reduction="none"'
        )
    if losses.shape != (rows,):
        hint = ""
        if losses.ndim > 1:
            hint = "; average or sum over the other dimensions, as by losses.flatten(1).mean(1)"
        elif len(losses) > rows > 0 and len(losses) % rows == 0:
            hint = f"; average those of a row's tokens, as by losses.view({rows}, -1).mean(1)"
        raise ScoreError(
            f"score returned losses of shape {tuple(losses.shape)}, expected ({rows},): one loss "
            f"per row{hint}"
        )
    if not losses.is_floating_point():
        raise ScoreError(
            f"score returned losses of dtype {losses.dtype}, expected floating point; convert "
            "them with .float()"
        )
    for name, values in (("residuals", scored.residuals), ("features", scored.features)):
        if values is not None and (values.ndim < 2 or values.shape[0] != rows):
            raise ScoreError(
                f"score returned {name} of shape {tuple(values.shape)}, expected ({rows}, ...): "
                "one vector per row"
            )
    # one dtype all along: known losses are float32, and methods must not see two in one run
    last_layer = (scored.residuals, scored.features)
    return Scored(losses.detach().float(), *(v if v is None else v.detach() for v in last_layer))
