"""Gradients of trained rows, from the backward pass that trains on them.

Who trains differentiates losses anyway. On its way the pass meets the output of the last layer with
parameters, and a hook there sees each row's gradient, times what the row weighs. That takes no
model, and no pass or graph of its own: a norm a batch is all it costs.

Source: Katharopoulos and Fleuret 2018, section 3.2, whose bound of a row's gradient norm is that of
the loss's gradient in the last layer's output, up to a factor that rows share.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["watch_norms"]

_NEAREST: Final = 4
"""So many layers are listened to, those nearest to the losses: what has parameters last, such as a
temperature, need not have an output for each row."""

_PRODUCTS: Final = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution")
"""Beyond layers that are products of matrices none is looked for."""

_SEARCHED: Final = 256
"""Nodes of the graph that are looked at to find them."""

_LOOKUPS: Final = ("Embedding", "Index", "Gather")

_BETWEEN: Final = 8
"""Nodes that may lie between a layer and its parameters, such as casts and views."""


def watch_norms(
    losses: Tensor, mean: Tensor, weights: Tensor, tell: Callable[[Tensor | None], None]
) -> bool:
    """Hear from a backward pass how large the gradient of each loss is.

    Args:
        losses: of B rows, shape (B,), with their graph.
        mean: their weighted mean, shape (), which the pass is of, or of a multiple.
        weights: of the losses in that mean, shape (B,); 0 marks a slot that no row fills.
        tell: called once, in the pass, with the norm of each loss's gradient in the output of the
            last layer, shape (B,), float32, NaN for empty slots; tokens of a sequence count as one
            vector. With None where no layer has an output for each row.

    Returns:
        whether there is any layer; if not, `tell` is never called.

    >>> layer = torch.nn.Linear(3, 1)
    >>> losses, weights = layer(torch.ones(2, 3)).squeeze(1).abs(), torch.tensor([0.5, 1.5])
    >>> mean = (losses * weights).mean()
    >>> watch_norms(losses, mean, weights, print)
    True
    >>> (16 * mean).backward()
    tensor([1., 1.])
    """
    layers = _layers(losses)
    rows, waiting, factor = len(losses), len(layers), list[Tensor]()

    def hear(output: int, one_number: bool, gradients: Sequence[Tensor | None]) -> None:
        nonlocal waiting
        if waiting == 0:
            return
        gradient = gradients[output]
        norms = None if gradient is None else _norms(gradient.detach(), rows, one_number)
        waiting = 0 if norms is not None else waiting - 1
        if norms is not None:
            tell(norms / _shares(weights, factor, norms.device))
        elif waiting == 0:
            tell(None)

    if layers:  # a trainer may scale the mean: by what it accumulates, by autocast's scaler
        mean.register_hook(factor.append)  # type: ignore[no-untyped-call] # untyped in torch
    for node, output in layers:
        node.register_prehook(partial(hear, output, _may_give_one_number(node)))
    return bool(layers)


def _layers(losses: Tensor) -> list[tuple[Node, int]]:
    """Find the operations with parameters nearest to the losses, and which output leads there.

    Not that which gives the losses themselves, whose gradients are all alike.
    """
    if losses.grad_fn is None:
        return []
    found, edges, seen = list[tuple[Node, int]](), deque(_behind(losses.grad_fn)), set[Node]()
    while edges and len(found) < _NEAREST and len(seen) < _SEARCHED:
        node, output = edges.popleft()
        if node in seen or _is_of_parameters(node):
            continue
        seen.add(node)
        behind = _behind(node)
        if any(_is_of_parameters(one) for one, _ in behind):
            found.append((node, output))
            if node.name().startswith(_PRODUCTS):
                break
        edges += behind
    return found


def _behind(node: Node) -> list[tuple[Node, int]]:
    return [(one, output) for one, output in node.next_functions if one is not None]


def _is_of_parameters(node: Node) -> bool:
    """Say whether a small graph ends in parameters alone, as that of a transposed one does.

    Where something that needs no gradient goes in as well, that may be data; what looks up rows
    of a parameter takes their numbers.
    """
    nodes = [node]
    for _ in range(_BETWEEN):
        if not nodes:
            return True
        node = nodes.pop()
        behind = _behind(node)
        if hasattr(node, "variable"):
            continue
        if len(behind) < max(1, len(node.next_functions)) or node.name().startswith(_LOOKUPS):
            return False
        nodes += [one for one, _ in behind]
    return not nodes


def _may_give_one_number(node: Node) -> bool:
    """Say whether an operation is a layer even if it gives one number a row.

    A product with a vector is, and so is one with data; what scales or adds up losses is not.
    """
    return node.name().startswith("MvBackward") or any(
        one is None for one, _ in node.next_functions
    )


def _norms(gradient: Tensor, rows: int, one_number: bool) -> Tensor | None:
    """Give the norm of each row's gradient, shape (B,), float32, or None without rows."""
    if gradient.ndim == 2 and len(gradient) % rows == 0:
        gradient = gradient.reshape(rows, -1)  # of sequences whose tokens come flattened
    if gradient.ndim == 0 or len(gradient) != rows:
        return None
    if gradient.ndim == 1:
        return gradient.float().abs() if one_number else None
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float32)
    return norms


def _shares(weights: Tensor, factor: list[Tensor], device: torch.device) -> Tensor:
    """Give what each loss was multiplied by on its way into the pass, shape (B,)."""
    weights = weights.to(device, non_blocking=True)
    filled = weights > 0
    shares = torch.where(filled, weights, torch.nan) / filled.sum()
    return shares * factor[0].detach().abs().to(device) if factor else shares
