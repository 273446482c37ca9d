"""The last linear layer of a model: which it is, and its residuals and features.

Heads are the layers that the losses depend on when all outputs of linear layers are held fixed; of
several the last one called whose output the losses follow row by row is taken. Losses are computed
once to find it, as for any other batch.

Where something else than an `nn.Linear` comes last, such as `F.linear` with an embedding's weight,
a layer before it is taken: its gradients are as true, if not the last ones, and the log says so.
"""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from adasel_stream.errors import ScoreError
from adasel_stream.types import Scored
from adasel_stream.watching import Watched

__all__ = ["find_head", "last_layer_of"]

_log = logging.getLogger(__name__)

_ADVICE = "let score return Scored(losses, residuals, features), or choose methods without it"


def find_head(seen: Watched, model: nn.Module) -> tuple[nn.Linear, bool]:
    """Find the last linear layer called whose output the losses follow row by row.

    Args:
        seen: losses, shape (b,), floating point, and the calls of all linear layers.
        model: the model that they are in, for messages.

    Returns:
        the layer, and whether it is beyond doubt: a single row, or rows without gradient, cannot
        show which rows are whose.

    Raises:
        ScoreError: there is none; it says what was found instead.

    >>> from adasel_stream.watching import watched
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> seen = watched(model.modules(), lambda: Scored(model(torch.rand(5, 3)).square().sum(1)))
    >>> head, sure = find_head(seen, model)
    >>> head is model[2], sure
    (True, True)
    """
    name, losses = type(model).__name__, seen.scored.losses
    layers = list(dict.fromkeys(call.layer for call in reversed(seen.calls)))
    if not layers:
        raise ScoreError(
            f"no nn.Linear of {name} took part in scoring, so there is no last layer to take "
            f"gradients from; let score call what is passed as model=; or {_ADVICE}"
        )
    if not losses.requires_grad:
        raise ScoreError(
            f"the losses have no gradient in any of the {len(layers)} linear layers of {name}; "
            f"call it without torch.no_grad, inference_mode and detach; or {_ADVICE}"
        )
    for head in layers:
        residuals = _residuals(seen, head)
        if residuals and _follow(seen, head, residuals):
            sure = _are_telling(residuals)
            if sure and (after := _parameters_after(seen, model)):
                _log.warning(
                    "gradients are those of the last linear layer of %s, after which %d parameters "
                    "still act, such as %s; for those of the last layer, %s",
                    *(name, len(after), after[0], _ADVICE),
                )
            return head, sure
    raise ScoreError(
        f"the losses follow none of the {len(layers)} linear layers of {name} row by row, each "
        f"loss by the output of its own row; {_ADVICE}"
    )


def last_layer_of(seen: Watched, head: nn.Linear) -> Scored:
    """Give the losses with residuals and features of a head.

    Where it was called several times their quantities stand side by side, as those of tokens do,
    each with the other outputs held fixed. So do those of sequences whose rows come flattened,
    (b·T, c); whether they are whole is looked at each time, which waits for the device.

    Args:
        seen: losses, shape (b,), floating point, and the calls of the head, maybe of others too.
        head: the layer.

    Returns:
        losses without graph, residuals (b, [T,] c) and features (b, [T,] h).

    Raises:
        ScoreError: the losses do not follow the head row by row.

    >>> from adasel_stream.watching import watched
    >>> head = nn.Linear(3, 2)
    >>> seen = watched([head], lambda: Scored(head(torch.ones(5, 3)).sum(1)))
    >>> last_layer_of(seen, head).residuals[0]
    tensor([1., 1.])
    """
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
    expected = residuals.flatten(1) * factors.to(residuals.dtype)[:, None]
    error = (scaled.flatten(1) - expected).abs()
    usable = torch.isfinite(error)
    numbers = torch.finfo(residuals.dtype)  # kernels that add up in no order leave a last digit
    bound = 4 * numbers.eps * torch.where(usable, expected.abs(), 0.0).amax(1, keepdim=True)
    return (usable & (error > bound + numbers.tiny)).any(1)


def _are_telling(residuals: dict[int, Tensor]) -> bool:
    """Say whether at least two rows have a gradient."""
    sizes = torch.stack([one.flatten(1).abs().amax(1) for one in residuals.values()]).sum(0)
    return _all_zero([(sizes > 0).sum() < 2])


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
