"""Where rows are in what losses were made of: which dimension of each tensor of the graph.

Each loss belongs to a row. Going back from the losses, operations move that dimension: a transposed
matrix has its rows second, a sum over time in front of them had them second as well, and stacked
losses of two heads have them first again. Where two rows meet in one number, as in a comparison of
each row with all others, there is no such dimension behind; and nobody knows it behind an operation
that is not listed here. A `torch.autograd.Function` of somebody's own is taken to go row by row
where as many come out of it as go in.

Sizes cannot tell it: a sequence may have as many steps as a batch has rows.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

__all__ = ["Edge", "is_known", "place_behind"]

Edge: TypeAlias = tuple[Node, int]
"""An operation, and which of its outputs."""

_NEGATIVE: Final = 2**63
"""Dimensions that are counted from the end are saved as unsigned numbers."""

# fmt: off
_NUMBER_BY_NUMBER: Final = frozenset(
    [
        "Abs", "Acos", "Add", "Addcdiv", "Addcmul", "Alias", "Angle", "Asin", "Asinh", "Atan",
        "Atan2", "Atanh", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "Celu", "Clamp",
        "ClampMax", "ClampMin", "Clone", "Conj", "Copy", "Cos", "Cosh", "Digamma", "Div", "Elu",
        "Erf", "Erfc", "Erfinv", "Exp", "Exp2", "Expand", "Expm1", "Fmax", "Fmin",
        "FusedDropout", "Gelu", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh",
        "HuberLoss", "Hypot", "KlDiv", "LeakyRelu", "Lerp", "Lgamma", "Log", "Log10", "Log1P",
        "Log2", "LogSigmoid", "Logaddexp", "Logaddexp2", "Logit", "MaskedFill", "Maximum",
        "Minimum", "Mish", "MseLoss", "Mul", "NanToNum", "NativeDropout", "Neg", "Polygamma",
        "Positive", "Pow", "Prelu", "PreluKernel", "Real", "Reciprocal", "Relu",
        "RreluWithNoise", "Rsqrt", "Rsub", "Sgn", "Sigmoid", "Sign", "Silu", "Sin", "Sinc",
        "Sinh", "SmoothL1Loss", "SoftMarginLoss", "Softplus", "Softshrink", "SpecialLogNdtr",
        "Sqrt", "Square", "Sub", "Tan", "Tanh", "Threshold", "To", "ToCopy", "ViewAsComplex",
        "ViewAsReal", "Where", "Xlogy",
    ]
)
# fmt: on
"""Operations that make each number of numbers at the same place."""

# fmt: off
_ALONG: Final = frozenset(
    [
        "Amax", "Amin", "Cat", "Cummax", "Cummin", "Cumprod", "Cumsum", "Flip", "Gather", "Glu",
        "IndexSelect", "Kthvalue", "LinalgVectorNorm", "LogSoftmax", "Logcumsumexp",
        "Logsumexp", "Max", "Mean", "Median", "Min", "Mode", "Nanmedian", "Nansum", "Norm",
        "Prod", "Renorm", "Select", "Softmax", "Sort", "Split", "SplitWithSizes", "Std",
        "StdMean", "Sum", "Topk", "Unbind", "Var", "VarMean",
    ]
)
# fmt: on
"""Operations along dimensions that they name, and which may be gone then."""

# fmt: off
_ROW_BY_ROW: Final = frozenset(
    [
        "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D",
        "AdaptiveMaxPool3D", "Convolution", "MaxPool2DWithIndices", "MaxPool3DWithIndices",
        "MultiMarginLoss", "MultilabelMarginLoss", "NativeGroupNorm", "NllLoss", "NllLoss2D",
        "PixelShuffle", "PixelUnshuffle", "Im2Col", "ReflectionPad1D", "ReflectionPad2D",
        "ReplicationPad1D", "ReplicationPad2D", "UpsampleNearest1D", "UpsampleNearest2D",
        "UpsampleNearest3D", "UpsampleLinear1D", "UpsampleBilinear2D", "UpsampleBicubic2D",
        "UpsampleTrilinear3D", "ScaledDotProductEfficientAttention",
        "ScaledDotProductFlashAttention", "ScaledDotProductFlashAttentionForCpu",
    ]
)
# fmt: on
"""Operations that take what they are given row by row, if rows come first."""

_NEW: Final = ("Stack", "Unsqueeze")
_VIEWS: Final = ("View", "UnsafeView", "Reshape", "ReshapeAlias")
_PRODUCTS: Final = {"Mm": 0, "Mv": 0, "Addmm": 1, "Addmv": 1}
"""Products of two factors, and which input is the first; rows are those of that one."""

_BATCHED: Final = {"Bmm": 0, "Baddbmm": 1}
"""The same of many products at once."""


_FOLLOWED: Final = frozenset(
    {
        *(_NUMBER_BY_NUMBER | _ALONG | _ROW_BY_ROW),
        *(_PRODUCTS.keys() | _BATCHED.keys()),
        *(*_NEW, *_VIEWS, "T", "Transpose", "Permute", "Squeeze", "Slice", "Index", "CtcLoss"),
        *("ConstantPadNd", "Repeat"),
        *("NativeLayerNorm", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"),
    }
)


def is_known(node: Node) -> bool:
    """Say whether rows can be followed through an operation, if the place is right.

    >>> is_known(torch.ones(3, requires_grad=True).exp().grad_fn)
    True
    """
    return _name(node) in _FOLLOWED or _is_of_a_user(node)


def place_behind(edge: Edge, way: int, place: int | None) -> int | None:
    """Say which dimension has the rows in an input of an operation, None where none has.

    Args:
        edge: the operation, and the output that is looked at.
        way: which input.
        place: dimension of the rows in the output, or None.

    >>> losses = torch.ones(3, 4, requires_grad=True).mean(0)
    >>> place_behind((losses.grad_fn, 0), 0, 0)
    1
    """
    node, output = edge
    behind, index = node.next_functions[way]
    if place is None or behind is None:
        return None
    after, before = _shape(node, output), _shape(behind, index)
    if after is None or before is None or place >= len(after):
        return None
    return _moved(node, way, place, after, before)


def _moved(
    node: Node, way: int, place: int, after: Sequence[int], before: Sequence[int]
) -> int | None:
    """Do as `place_behind`, from the shapes of the output and the input."""
    name = _name(node)
    dims = [_counted(one, max(len(after), len(before))) for one in _dims(node)]
    found: int | None = None
    if name in _NUMBER_BY_NUMBER:
        found = _aligned(place, after, before)
    elif name in _ALONG:
        found = _beside(place, dims, after, before)
    elif name == "T":
        found = 1 - place if len(before) == 2 else None
    elif name == "Transpose":
        one, other = dims
        found = {one: other, other: one}.get(place, place)
    elif name == "Permute":
        found = dims[place]
    elif name in _NEW:
        found = None if place in dims else place - sum(one < place for one in dims)
    elif name in _VIEWS or name == "Squeeze":
        found = _viewed(place, after, before)
    elif name in ("Slice", "Repeat"):
        found = _aligned(place, after, before)
    elif name == "ConstantPadNd":
        found = None if _is_padded(node, place, after) else place
    elif name == "Index":
        found = _indexed(node, place, before)
    elif name in _PRODUCTS:
        found = _of_product(way - _PRODUCTS[name], place, after, before)
    elif name in _BATCHED:
        way -= _BATCHED[name]
        found = None if way >= 0 and place == 2 - way else _aligned(place, after, before)
    elif name in _ROW_BY_ROW or _is_of_a_user(node):
        found = 0 if place == 0 and before[:1] == after[:1] else None
    elif name == "CtcLoss":  # of steps, rows and classes
        found = 1 if place == 0 else None
    elif name == "NativeLayerNorm":
        normal: Any = getattr(node, "_saved_normalized_shape", ())
        found = place if place < len(after) - len(normal) and before == after else None
    elif name.endswith("BatchNorm") and not getattr(node, "_saved_training", True):
        found = place if before == after else None
    return found


def _is_of_a_user(node: Node) -> bool:
    compiled = node.name().startswith("CompiledFunction")
    return isinstance(node, BackwardCFunction) and not compiled


def _name(node: Node) -> str:
    return node.name().rstrip("0123456789").removesuffix("Backward")


def _of_product(factor: int, place: int, after: Sequence[int], before: Sequence[int]) -> int | None:
    """Follow rows to the first factor, 0, or to what was added, -1; each takes all of the other."""
    if factor < 0:
        return _aligned(place, after, before)
    return 0 if factor == 0 and place == 0 else None


def _viewed(place: int, after: Sequence[int], before: Sequence[int]) -> int | None:
    """Find the dimension that has as many numbers in front of it, and as many rows."""
    if place == 0 and after[0] != 1:  # outermost, whatever is merged with it
        return next((one for one, size in enumerate(before) if size != 1), None)
    front = math.prod(after[:place])
    for one, size in enumerate(before):
        if size == after[place] and math.prod(before[:one]) == front:
            return one
    return None


def _aligned(place: int, after: Sequence[int], before: Sequence[int]) -> int | None:
    """Keep the dimension where there are as many rows in it, counted from the end at need."""
    one = place - max(0, len(after) - len(before))
    return one if one >= 0 and before[one] == after[place] else None


def _beside(
    place: int, dims: Sequence[int], after: Sequence[int], before: Sequence[int]
) -> int | None:
    """Keep the dimension beside those that an operation goes along; those may be gone behind it."""
    if len(before) == len(after):
        kept = before[place] == after[place] and place not in dims
        return place if kept and dims else None
    if len(before) != len(after) + len(dims):
        return None
    for one in sorted(dims):
        place += one <= place
    return place


def _indexed(node: Node, place: int, before: Sequence[int]) -> int | None:
    """Follow rows through an index that takes each of them once, in order, as `z[arange(b), y]`.

    Reading an index from an accelerator would wait for it; there nobody knows.
    """
    indices: Any = getattr(node, "_saved_indices", ())
    if place != 0 or not indices:
        return None
    first = indices[0]
    if first is None:  # indices that stand apart give their dimension to the front
        given = [one for one, index in enumerate(indices) if index is not None]
        return 0 if given and given[-1] - given[0] == len(given) - 1 else None
    if not isinstance(first, Tensor) or first.device.type != "cpu" or first.ndim != 1:
        return None
    rows = torch.arange(before[0])
    return 0 if first.dtype == rows.dtype and torch.equal(first, rows) else None


def _is_padded(node: Node, place: int, after: Sequence[int]) -> bool:
    """Say whether a dimension is padded or cut; pads are listed from the last one on."""
    pads: Any = getattr(node, "_saved_pad", ())
    first = 2 * (len(after) - 1 - place)
    return any(pads[first : first + 2])


def _dims(node: Node) -> list[int]:
    """Give the dimensions that an operation speaks of."""
    found = list[int]()
    for name in ("_saved_dim", "_saved_dims", "_saved_dim0", "_saved_dim1"):
        saved: Any = getattr(node, name, ())
        found += [saved] if isinstance(saved, int) else list(saved or ())
    return found


def _counted(dim: int, dims: int) -> int:
    """Count a dimension from the front."""
    dim = dim - 2 * _NEGATIVE if dim >= _NEGATIVE else dim
    return dim + dims if dim < 0 else dim


def _shape(node: Node, output: int) -> tuple[int, ...] | None:
    """Give the shape of an operation's output; of a leaf that of the leaf."""
    described: Any = getattr(node, "_input_metadata", ())
    return tuple(described[output].shape) if output < len(described) else None
