"""Gradients of trained rows, from the backward pass that trains on them.

Who trains differentiates losses anyway. On its way the pass meets the outputs of the last layers,
and hooks there see each row's gradient e, times what the pass multiplies the row's loss with; the
layers' inputs h are known as well. So ‖e‖·‖[h, 1]‖, the norm of the row's gradient in such a layer,
takes no model, and no pass or graph of its own.

No tensor of a kind that nobody foresaw ends a trainer's pass here, nor does what is made of the
norms; nothing waits for a device, and nothing outlives the graph.

Source: Katharopoulos and Fleuret 2018, section 3.2.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from adasel_stream.precision import full_precision
from adasel_stream.row_place import Edge, place_behind

__all__ = ["watch_norms"]

_log = logging.getLogger(__name__)

_PRODUCTS: Final = ("Addmm", "Mm", "Mv", "Convolution")
"""Operations that are layers by themselves, whatever else comes after them."""

_VIEWS: Final = ("View", "UnsafeView", "Reshape")
"""What gives the output of a layer its rows back, where its input was flattened for it."""

_LOOKUPS: Final = ("Embedding", "Index", "Gather")
"""Operations that give rows of a parameter, not a parameter."""

_INPUTS: Final = ("_raw_saved_mat1", "_raw_saved_self")
"""Where products keep their input for their own gradient."""

_NEAREST: Final = 8
"""So many layers are listened to, those nearest to the losses."""

_SEARCHED: Final = 128
"""Nodes of the graph that are looked at to find them."""

_BETWEEN: Final = 8
"""Nodes that may lie between a layer and its parameters, such as casts and views."""


class _Way(NamedTuple):
    """A way back from the losses: where it is, and which dimension has the rows there.

    Attributes:
        edge: an operation and its output.
        place: dimension of the rows, or None where there is none.
        view: that it has just come through, if it has, where rows come first.
    """

    edge: Edge
    place: int | None
    view: Edge | None


class _Layer(NamedTuple):
    """An operation with parameters: the node whose output has its rows, and which output it is."""

    node: Node
    output: int
    operation: Node

    @property
    def is_product(self) -> bool:
        return self.operation.name().startswith(_PRODUCTS)

    @property
    def may_give_one_number(self) -> bool:
        """Whether it is a layer even if it gives one number a row: products, also with data."""
        return self.is_product or any(one is None for one, _ in self.operation.next_functions)


def watch_norms(losses: Tensor, tell: Callable[[Tensor | None], None]) -> bool:
    """Hear from a backward pass how large the gradient of each loss is.

    Args:
        losses: of B rows, shape (B,), with their graph; the pass may be of anything made of them.
        tell: called once, in the pass, with a norm for each row, shape (B,), float32: over the last
            layers, all heads together, of ‖e‖·‖[h, 1]‖, or ‖e‖ where the input is not at hand;
            tokens of a sequence are summed over. NaN where the pass is not of a row. With
            None where it turns out that no layer has an output for each row, and where the graph
            is gone without a pass; what it raises is logged.

    Returns:
        whether there is any layer with rows; if not, `tell` is never called.

    >>> layer = torch.nn.Linear(3, 1)
    >>> losses = layer(torch.ones(2, 3)).squeeze(1).abs()
    >>> watch_norms(losses, print)
    True
    >>> (losses * torch.tensor([8.0, 3.0])).mean().backward()
    tensor([2., 2.])
    """
    layers = _layers(losses)
    if layers:
        ear = _Ear(len(losses), len(layers), tell)
        losses.register_hook(ear.begin)  # type: ignore[no-untyped-call] # untyped in torch
        for layer in layers:
            sizes = _input_sizes(layer.operation) if layer.is_product else None
            layer.node.register_prehook(
                partial(ear.hear, layer.output, layer.is_product, layer.may_give_one_number, sizes)
            )
    return bool(layers)


class _Ear:
    """What is heard of one batch; it holds no part of the graph, which holds it.

    Args:
        rows: B.
        layers: how many will speak.
        tell: called with the norms, or None, when all have.
    """

    def __init__(self, rows: int, layers: int, tell: Callable[[Tensor | None], None]) -> None:
        self._rows = rows
        self._waiting = layers
        self._tell = tell
        self._factors: Tensor | None = None
        self._products: Tensor | None = None
        self._other: Tensor | None = None

    def __del__(self) -> None:
        """Tell that the graph is gone, if nothing was told."""
        if self._waiting:
            self._end(None)

    def begin(self, factors: Tensor) -> None:
        """Hear what a pass multiplies each loss with, shape (B,)."""
        self._factors = factors.detach()

    def hear(
        self,
        output: int,
        is_product: bool,
        one_number: bool,
        sizes: Tensor | None,
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Hear the gradient in a layer's output, and tell when it was the last layer.

        Args:
            output: which of the node's outputs it is.
            is_product: whether the layer is one by itself.
            one_number: whether its output may have one number for each row.
            sizes: norms of its input, shape (B,) or (B·T,), or None where they are not known.
            gradients: of the losses, times their factors, in the node's outputs.
        """
        if self._waiting == 0 or self._factors is None:  # told already, or a pass of something else
            return
        self._waiting -= 1
        gradient = gradients[output]
        try:
            if gradient is not None:
                with full_precision(gradient.device):
                    norms = _norms(gradient.detach(), self._rows, sizes, one_number=one_number)
                    if norms is not None:
                        self._take(norms / self._factors.to(norms).abs(), is_product=is_product)
        except Exception:  # tensors of other kinds: a trainer's pass must not end for this
            _log.debug("a layer's gradient cannot be read", exc_info=True)
        if self._waiting == 0:
            self._factors = None
            self._end(self._other if self._products is None else self._products)

    def _end(self, norms: Tensor | None) -> None:
        self._waiting = 0
        try:
            self._tell(norms)
        except Exception:  # the pass is the trainer's
            _log.exception("gradients that were heard cannot be learnt from; training goes on")

    def _take(self, norms: Tensor, *, is_product: bool) -> None:
        """Put norms together with those of other products; anything else counts by itself."""
        if is_product:
            before = self._products
            self._products = norms if before is None else torch.hypot(before, norms)
        elif self._other is None:
            self._other = norms


def _layers(losses: Tensor) -> list[_Layer]:
    """Find the operations with parameters nearest to the losses, none of them behind a product.

    Not what gives the losses themselves, whose gradients are all alike; and none whose output has
    no rows in front, or in which rows meet on any way to the losses.
    """
    if losses.grad_fn is None:
        return []
    rows, found, places = len(losses), dict[Node, _Layer](), dict[Node, int | None]()
    ways = deque([_Way((losses.grad_fn, losses.output_nr), 0, None)])
    while ways and len(found) < _NEAREST and len(places) < _SEARCHED:
        edge, place, view = ways.popleft()
        node = edge[0]
        if node in places:
            if places[node] in (place, None):
                continue
            place = None  # rows meet here, as they come by different ways in different places
        elif _is_of_parameters(node, rows):
            continue
        places[node] = place
        behind = list(enumerate(node.next_functions))
        if len(places) > 1 and any(_is_of_parameters(one, rows) for _, (one, _) in behind):
            found.pop(node, None)
            layer = _Layer(*(edge if view is None else view), node)
            if place == 0:
                found[node] = layer
            if layer.is_product:
                continue
        held = edge if place == 0 and node.name().startswith(_VIEWS) else None
        ways.extend(
            _Way((one, output), place_behind(edge, way, place), held)
            for way, (one, output) in behind
            if one is not None
        )
    return list(found.values())


def _is_of_parameters(node: Node | None, rows: int) -> bool:
    """Say whether a small graph ends in parameters alone, as that of a transposed one does.

    Where something that needs no gradient goes in as well, that may be data; so may a leaf that has
    a row for each loss.
    """
    if node is None:
        return False
    nodes = [node]
    for _ in range(_BETWEEN):
        if not nodes:
            return True
        node = nodes.pop()
        leaf: Any = getattr(node, "variable", None)
        if leaf is not None:
            if not isinstance(leaf, nn.Parameter) and leaf.ndim and len(leaf) == rows:
                return False
            continue
        behind = [one for one, _ in node.next_functions if one is not None]
        if len(behind) < max(1, len(node.next_functions)) or node.name().startswith(_LOOKUPS):
            return False
        nodes += behind
    return not nodes


def _input_sizes(operation: Node) -> Tensor | None:
    """Give ‖[h, 1]‖ of each row of a product's input, shape (n,), or None where it is not at hand.

    Without a bias, which is added in the same operation, ‖h‖.

    A tensor that is saved for the backward pass is looked at by hooks that leave it as it is. Where
    others have theirs there already, for checkpointing or offloading, it is left alone.
    """
    sizes: list[Tensor] = []
    biased = operation.name().startswith("Addmm")

    def look(saved: Tensor) -> tuple[Tensor, int]:
        if saved.ndim == 2:
            sizes.append((_lengths(saved.detach()).square() + biased).sqrt())
        return saved, saved._version

    name = next((name for name in _INPUTS if hasattr(operation, name)), None)
    if name is not None:
        with suppress(RuntimeError), torch.no_grad():
            getattr(operation, name).register_hooks(look, _as_it_was)
    return sizes[0] if sizes else None


def _as_it_was(packed: tuple[Tensor, int]) -> Tensor:
    """Give a saved tensor back; torch itself does not look at versions where there are hooks.

    Raises:
        RuntimeError: the tensor was written to in place meanwhile.
    """
    saved, version = packed
    if saved._version != version:
        raise RuntimeError(
            "a tensor that the gradient of a linear layer needs was changed by an inplace "
            f"operation: the layer's input, of shape {tuple(saved.shape)}, is at version "
            f"{saved._version}, expected {version}; change a copy of it"
        )
    return saved


def _norms(gradient: Tensor, rows: int, sizes: Tensor | None, *, one_number: bool) -> Tensor | None:
    """Give the norm of each row's gradient, shape (B,), float32, or None without rows.

    Rows come first; those of sequences may come flattened, (B·T, c).
    """
    if gradient.ndim == 0 or len(gradient) % rows or (gradient.ndim == 1 and not one_number):
        return None
    if gradient.ndim == 1:
        gradient = gradient[:, None]
    if len(gradient) > rows:
        gradient = gradient.reshape(rows, -1, *gradient.shape[1:])
    if sizes is None or sizes.numel() * gradient.shape[-1] != gradient.numel():
        return _lengths(gradient.flatten(1))
    lengths = _lengths(gradient)
    return (lengths * sizes.reshape(lengths.shape)).reshape(rows, -1).sum(1)


def _lengths(vectors: Tensor) -> Tensor:
    """Give norms of vectors, shape (..., n) to (...), float32."""
    halves = vectors.dtype in (torch.float16, torch.bfloat16)  # their range is too small for sums
    lengths: Tensor = torch.linalg.vector_norm(
        vectors, dim=-1, dtype=torch.float32 if halves else None
    )
    return lengths.float()
