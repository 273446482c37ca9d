"""The last linear layer of a model: which it is, and its residuals and features.

Heads are the layers that the losses depend on when all outputs of linear layers are held fixed; of
several the last one called whose output the losses follow row by row is taken. As a rule it is the
one that the model defines last, or is called after that; losses are then computed once to find it,
as for any other batch.

Where something else than an `nn.Linear` comes last, such as `F.linear` with an embedding's weight,
a layer before it is taken: its gradients are as true, if not the last ones, and the log says so.
"""

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from adasel_stream.errors import ScoreError
from adasel_stream.types import Scored
from adasel_stream.watching import Watched, watched

__all__ = ["Found", "find_head", "last_layer_of"]

_log = logging.getLogger(__name__)

_ADVICE = "let score return Scored(losses, residuals, features), or choose methods without it"


class Found(NamedTuple):
    """What a search for the head came to.

    Attributes:
        seen: what the score gave, and the calls of layers, those of the head among them.
        head: the layer, or None.
        sure: whether it is beyond doubt: a single row, or rows without gradient, cannot show which
            rows are whose.
        why: why there is no head, or "" where the score gave something else than bare losses.
    """

    seen: Watched
    head: nn.Linear | None = None
    sure: bool = False
    why: str = ""


def find_head(model: nn.Module, score: Callable[[], Scored]) -> Found:
    """Find the last linear layer called whose output the losses follow row by row.

    Args:
        model: whose layers to look through, wrapped or not.
        score: computes losses, shape (b,), by calling the model.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = find_head(model, lambda: Scored(model(torch.rand(5, 3)).square().sum(1)))
    >>> found.head is model[2], found.sure
    (True, True)
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = _found(watched(layers, score, start=next(reversed(layers), None)), model)
    if found.why and found.seen.passed and not found.seen.calls:  # defined, but not called
        found = _found(watched(layers, score, start=found.seen.passed[-1]), model)
    if found.why and found.seen.passed:
        found = _found(watched(layers, score), model)
    if found.sure and (after := _parameters_after(found.seen, model)):
        _log.warning(
            "gradients are those of the last linear layer of %s, after which other "
            "parameters still act (%d), such as %s; for those of the last layer, %s",
            *(type(model).__name__, len(after), after[0], _ADVICE),
        )
    return found


def last_layer_of(found: Found) -> Scored:
    """Give the losses with residuals and features of the head.

    Where it was called several times their quantities stand side by side, as those of tokens do,
    each with the other outputs held fixed. So do those of sequences whose rows come flattened,
    (b·T, c); whether they are whole is looked at each time, which waits for the device.

    Args:
        found: losses, shape (b,), floating point, with the head's calls.

    Returns:
        losses without graph, residuals (b, [T,] c) and features (b, [T,] h).

    Raises:
        ScoreError: there is no head, or the losses do not follow it row by row.

    >>> head = nn.Linear(3, 2)
    >>> seen = watched([head], lambda: Scored(head(torch.ones(5, 3)).sum(1)))
    >>> last_layer_of(Found(seen, head)).residuals[0]
    tensor([1., 1.])
    """
    seen, head = found.seen, found.head
    if head is None:
        raise ScoreError(found.why)
    losses = seen.scored.losses
    rows = len(losses)
    own = [call for call in seen.calls if call.layer is head]
    flattened = any(len(call.mark) != rows for call in own)
    residuals = _residuals(seen, head) if losses.requires_grad else {}
    if not residuals or (flattened and not _follow(seen, head, residuals)):
        raise ScoreError(
            f"the losses of {rows} rows do not follow the last linear layer row by row, as those "
            "of the first candidates did; let score take the same way through the model for every "
            "batch, rows first, or let it return Scored(losses, residuals, features)"
        )
    features = [_by_row(own[i].features, rows) for i in residuals]
    return Scored(losses.detach(), _side_by_side(residuals.values()), _side_by_side(features))


def _found(seen: Watched, model: nn.Module) -> Found:
    losses, name = seen.scored.losses, type(model).__name__
    if seen.scored.residuals is not None or not _one_a_row(losses):
        return Found(seen)
    layers = list(dict.fromkeys(call.layer for call in reversed(seen.calls)))
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
    for head in layers:
        residuals = _residuals(seen, head)
        if residuals and _follow(seen, head, residuals):
            return Found(seen, head, _are_telling(residuals))
    return Found(
        seen,
        why=f"the losses follow none of the {len(layers)} linear layers of {name} row by row, each "
        f"loss by the output of its own row; {_ADVICE}",
    )


def _one_a_row(losses: object) -> bool:
    """Say whether these can be losses of rows; what cannot is refused elsewhere."""
    return isinstance(losses, Tensor) and losses.ndim == 1 and losses.is_floating_point()


def _residuals(seen: Watched, head: nn.Linear, weights: Tensor | None = None) -> dict[int, Tensor]:
    """Differentiate weighted losses in the output of each call of the head.

    Calls that the losses do not depend on are left out; all are where one has no row for each
    loss.
    """
    losses = seen.scored.losses
    own = [call for call in seen.calls if call.layer is head]
    weights = torch.ones_like(losses) if weights is None else weights
    marks = [call.mark for call in own]
    gradients = list[Tensor | None](
        torch.autograd.grad(losses, marks, weights, retain_graph=True, allow_unused=True)
    )
    used = [(i, one) for i, one in enumerate(gradients) if one is not None]
    found = {i: _by_row(one, len(losses)) for i, one in used}
    there = {i: residuals for i, residuals in found.items() if residuals is not None}
    return there if len(there) == len(found) else {}


def _follow(seen: Watched, head: nn.Linear, residuals: dict[int, Tensor]) -> bool:
    """Say whether each loss depends on the outputs of its own row alone.

    If so, losses that are multiplied by powers of two have residuals that are, to the last digit.
    Rows without finite gradient say nothing.
    """
    losses = seen.scored.losses
    place = torch.arange(len(losses), device=losses.device, dtype=torch.float32)
    # by the golden section: rows at any distance differ somewhere
    factors = torch.exp2((place * 0.618034 % 1 * 4).floor()).to(losses.dtype)
    scaled = _residuals(seen, head, factors)
    return _all_zero([_differ(scaled[i], one, factors) for i, one in residuals.items()])


def _differ(scaled: Tensor, residuals: Tensor, factors: Tensor) -> Tensor:
    """Say which rows are not scaled by their own factor, shape (b,), bool."""
    factors = factors.to(residuals.dtype)
    error = _largest(torch.addcmul(scaled.flatten(1), residuals.flatten(1), -factors[:, None]))
    numbers = torch.finfo(residuals.dtype)  # kernels that add up in no order leave a last digit
    bound = 4 * numbers.eps * _largest(residuals) * factors + numbers.tiny
    return torch.isfinite(error) & (error > bound)


def _are_telling(residuals: dict[int, Tensor]) -> bool:
    """Say whether at least two rows have a gradient."""
    sizes = torch.stack([_largest(one) for one in residuals.values()]).sum(0)
    return _all_zero([(sizes > 0).sum() < 2])


def _largest(values: Tensor) -> Tensor:
    """Give the largest magnitude in each row, shape (b,)."""
    size: Tensor = torch.linalg.vector_norm(values.flatten(1), ord=torch.inf, dim=1)
    return size


def _all_zero(tensors: list[Tensor]) -> bool:
    """Look at numbers, which waits for the device; once, while heads are given rows first."""
    return not any(bool(tensor.any()) for tensor in tensors)


def _parameters_after(seen: Watched, model: nn.Module) -> list[str]:
    """Give names of parameters that act between the linear layers and the losses."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    done: set[Node | None] = {None, *(call.beginning for call in seen.calls)}
    nodes, found = [seen.scored.losses.grad_fn], list[str]()
    while nodes:
        node = nodes.pop()
        if node is None or node in done:
            continue
        done.add(node)
        nodes += [following for following, _ in node.next_functions]
        found += [names[id(v)] for v in [getattr(node, "variable", None)] if id(v) in names]
    return found


def _by_row(values: Tensor, rows: int) -> Tensor | None:
    """Bring rows to the front: those of sequences may come flattened, (b·T, c)."""
    if len(values) == rows:
        return values
    if values.ndim == 2 and rows and len(values) % rows == 0:
        return values.reshape(rows, -1, values.shape[1])
    return None


def _side_by_side(parts: Iterable[Tensor | None]) -> Tensor:
    there = [part for part in parts if part is not None]
    if len(there) == 1:
        return there[0]
    return torch.cat([part.flatten(1, -2) if part.ndim > 2 else part[:, None] for part in there], 1)
