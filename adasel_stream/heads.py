"""The last linear layers of a model: which they are, and their residuals and features.

Heads are the layers that the losses depend on when all outputs of linear layers are held fixed, and
whose output they follow row by row: one as a rule, several where there are several tasks. Losses of
the first candidates are differentiated to find them, as for any other batch; that takes as much
memory as training on these candidates does, and where there is not so much, the layer that is
defined last is looked at alone.

Where something else than an `nn.Linear` comes last, such as `F.linear` with an embedding's weight,
the layer called last before it is taken: its gradients are as true, if not the last ones, and the
log says so.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.functional import pad

from adasel_stream.errors import ScoreError
from adasel_stream.types import Scored
from adasel_stream.watching import Call, Watched, watched

__all__ = ["Found", "find_heads", "last_layer_of"]

_log = logging.getLogger(__name__)

_ADVICE = "let score return Scored(losses, residuals, features), or choose methods without it"

_MOST_BYTES: Final = 2**28
"""Residuals of several heads over features of their own are mostly zeros; that may take so much."""


class Found(NamedTuple):
    """What a search for heads came to.

    Attributes:
        seen: what the score gave, and the calls of layers, those of heads among them.
        heads: the layers, in the order of their last calls; empty where there are none.
        sure: whether they are beyond doubt: a single row, or rows without gradient, cannot show
            which rows are whose.
        strays: trained layers that the losses depend on as well, but not row by row.
        why: why there are none, or "" where the score gave something else than bare losses.
    """

    seen: Watched
    heads: tuple[nn.Linear, ...] = ()
    sure: bool = False
    strays: tuple[nn.Linear, ...] = ()
    why: str = ""


def find_heads(model: nn.Module, score: Callable[[], Scored]) -> Found:
    """Find the linear layers whose outputs the losses follow row by row, with no other behind.

    Args:
        model: whose layers to look through, wrapped or not.
        score: computes losses, shape (b,), by calling the model.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = find_heads(model, lambda: Scored(model(torch.rand(5, 3)).square().sum(1)))
    >>> found.heads == (model[2],), found.sure
    (True, True)
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    whole: Found | None = None
    with suppress(torch.OutOfMemoryError):
        whole = _found(watched(layers, score), model)
    # not while the error is held: it holds all that has taken the memory
    found = _of_the_last(layers, score, model) if whole is None else whole
    if not found.sure:
        return found
    names = {id(layer): name for name, layer in model.named_modules()}
    after = _parameters_after(found.seen, model)
    # weights of tasks are a number each; what is more acts on features
    if any(parameter.numel() > len(found.heads) for _, parameter in after):
        found = found._replace(heads=found.heads[-1:])
    elif (size := _bytes_of(found)) > _MOST_BYTES:
        _log.warning(
            "gradients of the %d last layers of %s would take %d MiB a batch together: those of %s "
            "alone are taken",
            *(len(found.heads), type(model).__name__, size >> 20, names[id(found.heads[-1])]),
        )
        found = found._replace(heads=found.heads[-1:])
    if after and len(found.heads) == 1:
        _log.warning(
            "gradients are those of the last linear layer of %s, after which other "
            "parameters still act (%d), such as %s; for those of the last layer, %s",
            *(type(model).__name__, len(after), after[0][0], _ADVICE),
        )
    if found.strays:
        _log.warning(
            "losses depend otherwise than row by row on %d more linear layers of %s, such as %s, "
            "whose gradients are not counted",
            *(len(found.strays), type(model).__name__, names[id(found.strays[0])]),
        )
    if len(found.heads) > 1:
        _log.info(
            "gradients are those of %d last layers of %s together: %s",
            *(len(found.heads), type(model).__name__),
            ", ".join(names[id(head)] for head in found.heads),
        )
    return found


def _of_the_last(
    layers: Sequence[nn.Linear], score: Callable[[], Scored], model: nn.Module
) -> Found:
    """Look at the layer that is defined last alone, or if nobody calls it at that called last."""
    _log.warning(
        "there is no memory to look for all last layers of %s at once: one of them is looked at "
        "alone, and if there are others, gradients are not of them",
        type(model).__name__,
    )
    seen = watched(layers, score, start=next(reversed(layers), None))
    if seen.passed and not seen.calls:
        seen = watched(layers, score, start=seen.passed[-1])
    return _found(seen, model)


def last_layer_of(found: Found) -> Scored:
    """Give the losses with residuals and features of the heads.

    Heads that have the same input count as one with all outputs. Otherwise the quantities of
    different calls stand side by side, as those of tokens do, each with the other outputs held
    fixed; those of different heads are 0 in the outputs of others. Heads that no loss depends on
    this time are 0 throughout. Sequences may have their rows flattened, (b·T, c); whether they are
    whole is looked at each time, which waits for the device.

    Args:
        found: losses, shape (b,), floating point, with the heads' calls.

    Returns:
        losses without graph, residuals (b, [T,] c) and features (b, [T,] h).

    Raises:
        ScoreError: there is no head, or the losses do not follow all of them row by row.

    >>> head = nn.Linear(3, 2)
    >>> seen = watched([head], lambda: Scored(head(torch.ones(5, 3)).sum(1)))
    >>> last_layer_of(Found(seen, (head,))).residuals[0]
    tensor([1., 1.])
    """
    seen, heads = found.seen, found.heads
    if not heads:
        raise ScoreError(found.why)
    losses = seen.scored.losses
    rows = len(losses)
    calls = _calls_of(seen, heads)
    flattened = any(len(call.mark) != rows for call in calls)
    residuals = _residuals(losses, calls) if losses.requires_grad else {}
    own = {call: one for call, one in residuals.items() if one is not None}
    rowless = not own or len(own) < len(residuals)
    if rowless or (flattened and not all(_follow(losses, residuals).values())):
        raise ScoreError(
            f"the losses of {rows} rows do not follow the last linear layer row by row, as those "
            "of the first candidates did; let score take the same way through the model for every "
            "batch, rows first, or let it return Scored(losses, residuals, features)"
        )
    return Scored(losses.detach(), *_together(own, heads, rows))


def _found(seen: Watched, model: nn.Module) -> Found:
    losses, name = seen.scored.losses, type(model).__name__
    if seen.scored.residuals is not None or not _one_a_row(losses):
        return Found(seen)
    layers = list(dict.fromkeys(call.layer for call in reversed(seen.calls)))[::-1]
    if not layers:
        return Found(
            seen,
            why=f"no nn.Linear of {name} took part in scoring, so there is no last layer to take "
            f"gradients from; let score call what is passed as model=; or {_ADVICE}",
        )
    if not losses.requires_grad:
        return Found(
            seen,
            why=f"the losses have no gradient in any of the {len(layers)} linear layers of {name}; "
            f"call it without torch.no_grad, inference_mode and detach; or {_ADVICE}",
        )
    residuals = _residuals(losses, seen.calls)
    follow = _follow(losses, residuals)
    used = {call.layer for call in residuals}
    strays = {call.layer for call, one in residuals.items() if one is None or not follow[call]}
    heads = [layer for layer in layers if layer in used - strays]
    heads = [layer for layer in heads if _is_trained(layer)] or heads
    if heads:
        if not all(call.cut for call in seen.calls):
            # a score that computes gradients of its own keeps its graph, in which all layers act
            heads, strays = heads[-1:], set[nn.Linear]()
        own = [one for call, one in residuals.items() if call.layer in heads and one is not None]
        others = tuple(layer for layer in layers if layer in strays and _is_trained(layer))
        return Found(seen, tuple(heads), _are_telling(own), others)
    return Found(
        seen,
        why=f"the losses follow none of the {len(layers)} linear layers of {name} row by row, each "
        f"loss by the output of its own row; {_ADVICE}",
    )


def _one_a_row(losses: object) -> bool:
    """Say whether these can be losses of rows; what cannot is refused elsewhere."""
    return isinstance(losses, Tensor) and losses.ndim == 1 and losses.is_floating_point()


def _is_trained(layer: nn.Linear) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _calls_of(seen: Watched, heads: Iterable[nn.Linear]) -> list[Call]:
    return [call for call in seen.calls if call.layer in heads]


def _residuals(
    losses: Tensor, calls: Sequence[Call], weights: Tensor | None = None
) -> dict[Call, Tensor | None]:
    """Differentiate weighted losses in the output of each call of a layer.

    Calls that the losses do not depend on are left out; those with no row for each loss have None.
    """
    weights = torch.ones_like(losses) if weights is None else weights
    gradients = list[Tensor | None](
        torch.autograd.grad(
            losses, [call.mark for call in calls], weights, retain_graph=True, allow_unused=True
        )
    )
    pairs = zip(calls, gradients, strict=True)
    return {call: _by_row(one, len(losses)) for call, one in pairs if one is not None}


def _follow(losses: Tensor, residuals: dict[Call, Tensor | None]) -> dict[Call, bool]:
    """Say of which calls each loss depends on the outputs of its own row alone.

    If so, losses that are multiplied by powers of two have residuals that are, to the last digit.
    Rows without finite gradient say nothing.
    """
    place = torch.arange(len(losses), device=losses.device, dtype=torch.float32)
    # by the golden section: rows at any distance differ somewhere
    factors = torch.exp2((place * 0.618034 % 1 * 4).floor()).to(losses.dtype)
    scaled = _residuals(losses, list(residuals), factors)
    return {
        call: one is not None
        and (other := scaled[call]) is not None
        and _all_zero([_differ(other, one, factors)])
        for call, one in residuals.items()
    }


def _differ(scaled: Tensor, residuals: Tensor, factors: Tensor) -> Tensor:
    """Say which rows are not scaled by their own factor, shape (b,), bool."""
    factors = factors.to(residuals.dtype)
    error = _largest(torch.addcmul(scaled.flatten(1), residuals.flatten(1), -factors[:, None]))
    numbers = torch.finfo(residuals.dtype)  # kernels that add up in no order leave a last digit
    bound = 4 * numbers.eps * _largest(residuals) * factors + numbers.tiny
    return torch.isfinite(error) & (error > bound)


def _are_telling(residuals: Iterable[Tensor]) -> bool:
    """Say whether at least two rows have a gradient."""
    sizes = torch.stack([_largest(one) for one in residuals]).sum(0)
    return _all_zero([(sizes > 0).sum() < 2])


def _largest(values: Tensor) -> Tensor:
    """Give the largest magnitude in each row, shape (b,)."""
    size: Tensor = torch.linalg.vector_norm(values.flatten(1), ord=torch.inf, dim=1)
    return size


def _all_zero(tensors: list[Tensor]) -> bool:
    """Look at numbers, which waits for the device; once, while heads are given rows first."""
    return not any(bool(tensor.any()) for tensor in tensors)


def _parameters_after(seen: Watched, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Give parameters that act between the linear layers and the losses, with their names."""
    named = {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}
    done: set[Node | None] = {None, *(call.beginning for call in seen.calls)}
    nodes, found = [seen.scored.losses.grad_fn], list[tuple[str, nn.Parameter]]()
    while nodes:
        node = nodes.pop()
        if node is None or node in done:
            continue
        done.add(node)
        nodes += [following for following, _ in node.next_functions]
        found += [named[id(v)] for v in [getattr(node, "variable", None)] if id(v) in named]
    return found


def _by_row(values: Tensor, rows: int) -> Tensor | None:
    """Bring rows to the front: those of sequences may come flattened, (b·T, c)."""
    if len(values) == rows:
        return values
    if values.ndim == 2 and rows and len(values) % rows == 0:
        return values.reshape(rows, -1, values.shape[1])
    return None


def _bytes_of(found: Found) -> int:
    """Say how much residuals of all heads together take, in bytes, where each has its features."""
    calls = _calls_of(found.seen, found.heads)
    total = sum(head.out_features for head in found.heads)
    if len(found.heads) == 1 or all(one.features.is_set_to(calls[0].features) for one in calls):
        return 0
    return sum(call.features[..., 0].numel() for call in calls) * total * 4


def _together(
    residuals: dict[Call, Tensor], heads: Sequence[nn.Linear], rows: int
) -> tuple[Tensor, Tensor]:
    """Put the residuals and features of all calls together; `last_layer_of` says how."""
    calls = sorted(residuals, key=lambda call: heads.index(call.layer))
    outputs = [residuals[call] for call in calls]
    inputs = [own for call in calls if (own := _by_row(call.features, rows)) is not None]
    if len(heads) == len(calls) == 1:
        return outputs[0], inputs[0]
    if len(heads) == len(calls) == len({call.layer for call in calls}) and all(
        other.is_set_to(inputs[0]) for other in inputs
    ):
        return torch.cat(outputs, -1), inputs[0]
    total = sum(head.out_features for head in heads)
    start = dict(
        zip(heads, accumulate((head.out_features for head in heads), initial=0), strict=False)
    )
    widest = max(head.in_features for head in heads)
    wide = [
        pad(one, (start[call.layer], total - start[call.layer] - one.shape[-1]))
        for call, one in zip(calls, outputs, strict=True)
    ]
    return _side_by_side(wide), _side_by_side(
        [pad(own, (0, widest - own.shape[-1])) for own in inputs]
    )


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1, -2) if part.ndim > 2 else part[:, None] for part in parts], 1)
