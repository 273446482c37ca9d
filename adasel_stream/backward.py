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
from functools import cache, partial, reduce
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from adasel_stream.precision import full_precision
from adasel_stream.row_place import Edge, is_known, place_behind

__all__ = ["watch_norms"]

_log = logging.getLogger(__name__)

_PRODUCTS: Final = ("Addmm", "Mm", "Mv", "Convolution")
"""Operations that are layers by themselves, whatever else comes after them."""

_LOOKUPS: Final = ("Embedding", "Index", "Gather")
"""Operations that give rows of a parameter, not a parameter."""

_INPUTS: Final = ("_raw_saved_mat1", "_raw_saved_self")
"""Where products keep their input for their own gradient."""

_MOST: Final = 64
_SEARCHED: Final = 1024
"""Layers, and nodes of the graph on the way to them, of which there may be so many."""

_BETWEEN: Final = 8
"""Nodes that may lie between a layer and its parameters, such as casts and views."""


class _Layer(NamedTuple):
    """An operation with parameters, whose output has rows in front.

    Attributes:
        edge: the operation, and which of its outputs.
        group: a number that calls with the same weight, or outputs of the same operation, share.
        is_product: whether the operation is a layer by itself, whatever comes after it.
        gives_numbers: whether its output may have one number for each row: of products, and where
            data go in as well.
    """

    edge: Edge
    group: int
    is_product: bool
    gives_numbers: bool


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
        ear = _Ear(len(losses), [(one.group, one.is_product) for one in layers], tell)
        losses.register_hook(ear.begin)  # type: ignore[no-untyped-call] # untyped in torch
        for place, (edge, _, is_product, gives_numbers) in enumerate(layers):
            sizes = _input_sizes(edge[0]) if is_product else None
            edge[0].register_prehook(partial(ear.hear, place, edge[1], gives_numbers, sizes))
    return bool(layers)


class _Ear:
    """What is heard of one batch; it holds no part of the graph, which holds it.

    Args:
        rows: B.
        layers: for each layer its group, and whether it is a product; nearest first.
        tell: called with the norms, or None, when all were heard in one pass.
    """

    def __init__(
        self,
        rows: int,
        layers: Sequence[tuple[int, bool]],
        tell: Callable[[Tensor | None], None],
    ) -> None:
        self._rows = rows
        self._layers = layers
        self._tell: Callable[[Tensor | None], None] | None = tell
        self._factors: Tensor | None = None
        self._heard: dict[int, Tensor | None] = {}

    def __del__(self) -> None:
        """Tell that the graph is gone, if nothing was told."""
        self._end(None)

    def begin(self, factors: Tensor) -> None:
        """Hear what a pass multiplies each loss with, shape (B,)."""
        self._factors = factors.detach()
        self._heard.clear()

    def hear(
        self,
        place: int,
        output: int,
        gives_numbers: bool,
        sizes: Tensor | None,
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Hear the gradient in a layer's output, and tell when it was the last layer.

        Args:
            place: which layer it is.
            output: which of the node's outputs it is.
            gives_numbers: whether its output may have one number for each row.
            sizes: norms of its input, shape (B,) or (B·T,), or None where they are not known.
            gradients: of the losses, times their factors, in the node's outputs.
        """
        if self._tell is None or self._factors is None:  # told already, or a pass of something else
            return
        gradient, norms = gradients[output], None
        try:
            if gradient is not None:
                with full_precision(gradient.device):
                    norms = _norms(gradient.detach(), self._rows, sizes, one_number=gives_numbers)
                    if norms is not None:
                        norms = norms / self._factors.to(norms).abs()
        except Exception:  # tensors of other kinds: a trainer's pass must not end for this
            _log.debug("a layer's gradient cannot be read", exc_info=True)
        self._heard[place] = norms
        if len(self._heard) == len(self._layers):
            self._end(self._together())

    def _together(self) -> Tensor | None:
        """Add up calls of the same layer, as tokens are, and put layers together by their squares.

        Where there are products, they count alone; else the nearest of the others does.
        """
        products = any(is_product for _, is_product in self._layers)
        nearest = self._layers[0][0]
        sums: dict[int, Tensor] = {}
        for place, (group, is_product) in enumerate(self._layers):
            if is_product is not products or (not products and group != nearest):
                continue
            norms = self._heard[place]
            if norms is None:
                return None
            if group in sums:
                norms = sums[group] + norms if products else torch.hypot(sums[group], norms)
            sums[group] = norms
        return reduce(torch.hypot, sums.values())

    def _end(self, norms: Tensor | None) -> None:
        tell, self._tell, self._factors = self._tell, None, None
        self._heard.clear()
        if tell is None:
            return
        try:
            tell(norms)
        except Exception:  # the pass is the trainer's
            _log.exception("gradients that were heard cannot be learnt from; training goes on")


def _layers(losses: Tensor) -> list[_Layer]:
    """Find the operations with parameters nearest to the losses, none of them behind a product.

    Not what gives the losses themselves, whose gradients are all alike. None at all where one of
    them has no rows in front or mixes them on a way to the losses, as what the others have would
    not be all; or where there are more than can be listened to.
    """
    if losses.grad_fn is None:
        return []
    rows, found, places = len(losses), dict[Edge, _Layer](), dict[Edge, int | None]()
    ways = deque[tuple[Edge, int | None, str]]([((losses.grad_fn, losses.output_nr), 0, "")])
    while ways:
        edge, place, lost = ways.popleft()
        node = edge[0]
        if edge in places:
            if places[edge] in (place, None):
                continue
            place = None  # rows meet here, as they come by different ways in different places
        elif _is_of_parameters(node, rows):
            continue
        places[edge] = place
        if len(places) > _SEARCHED:
            return []
        behind = list(enumerate(node.next_functions))
        own = [one for _, (one, _) in behind if _is_of_parameters(one, rows)]
        if own and node is not losses.grad_fn:
            if place != 0 or len(found) == _MOST:
                _tell_once(lost)
                return []
            is_product = node.name().startswith(_PRODUCTS)
            group = _leaf(own[-1]) if is_product else id(node)
            numbers = is_product or any(one is None for _, (one, _) in behind)
            found[edge] = _Layer(edge, group, is_product, numbers)
            if is_product or not is_known(node):
                continue
        for way, (one, output) in behind:
            if one is None:
                continue
            further = place_behind(edge, way, place)
            just_lost = place is not None and further is None
            ways.append(((one, output), further, node.name() if just_lost else lost))
    return list(found.values())


@cache
def _tell_once(lost: str) -> None:
    """Say behind which operation nobody knows where rows are, if it is one."""
    if lost:
        _log.info("rows of a batch cannot be followed from their losses to what is behind %s", lost)


def _leaf(node: Node | None) -> int:
    """Give a number of the parameter that a small graph begins with."""
    while node is not None and not hasattr(node, "variable"):
        node = next((one for one, _ in node.next_functions if one is not None), None)
    return id(getattr(node, "variable", None))


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
