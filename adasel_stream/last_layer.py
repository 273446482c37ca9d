"""What the last linear layer knows of each candidate, without a gradient of any sample.

With e the gradient of a row's loss in the layer's output and h the layer's input, the gradient of
the layer's weight and bias is e [h, 1]ᵀ. Sums, products and norms of such gradients are had from e
and h themselves: (c, h) matrices for a batch, never one for a row. Between rows and the last
dimension there may be others, such as the tokens of a sequence; they are summed over. A layer
without bias counts as one whose bias could be trained.

Nothing here waits for a device, and all shapes are static.

Source: Katharopoulos and Fleuret 2018, section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LastLayer", "alignments", "cosine", "gradient_norms", "mean_gradient", "mean_gradients"]


@dataclass(frozen=True, slots=True)
class LastLayer:
    """Last-layer quantities of b rows.

    Attributes:
        residuals: e, gradients of each loss in the layer's output, shape (b, ..., c).
        features: h, the layer's input, shape (b, ..., h).
    """

    residuals: Tensor
    features: Tensor

    def masked(self, usable: Tensor) -> "LastLayer":
        """Put zeros where a row may not be used; `usable` has shape (b,), bool.

        >>> last = LastLayer(torch.tensor([[torch.nan], [2.0]]), torch.ones(2, 1))
        >>> last.masked(torch.tensor([False, True])).residuals
        tensor([[0.],
                [2.]])
        """
        mask = usable.reshape(-1, *[1] * (self.residuals.ndim - 1))
        return LastLayer(
            torch.where(mask, self.residuals, 0.0), torch.where(mask, self.features, 0.0)
        )

    def of(self, rows: Tensor) -> "LastLayer":
        """Take some rows out, of indices of shape (k,), int64."""
        return LastLayer(self.residuals.index_select(0, rows), self.features.index_select(0, rows))


def gradient_norms(last: LastLayer) -> Tensor:
    """Bound each row's gradient norm: ‖e‖ · ‖[h, 1]‖, summed over tokens, shape (b,), float32.

    It is the norm itself where a row has one output vector.

    >>> gradient_norms(LastLayer(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)))
    tensor([5.])
    """
    residual: Tensor = torch.linalg.vector_norm(last.residuals.float(), dim=-1)
    feature: Tensor = torch.linalg.vector_norm(last.features.float(), dim=-1)
    return _per_row(residual * (feature.square() + 1).sqrt())


def mean_gradient(last: LastLayer, weights: Tensor | None = None) -> Tensor:
    """Give G = Σ w e [h, 1]ᵀ, shape (..., c, h+1), float32; the bias is the last column.

    Args:
        last: quantities of b rows.
        weights: w of each row, shape (..., b), a gradient for each set of weights; None for 1/b.

    >>> mean_gradient(LastLayer(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [0.0]])))
    tensor([[1., 2.]])
    """
    residuals = last.residuals.float()
    weighted = residuals.flatten(0, -2).T
    if weights is not None:
        weights = weights.to(residuals.dtype)
        if residuals.ndim > 2:  # tokens weigh as their row does
            weights = weights.repeat_interleave(residuals[0, ..., 0].numel(), -1)
        weighted = weights[..., None, :] * weighted
    # the bias by itself: [h, 1] would copy all features
    of_weight = weighted @ last.features.float().flatten(0, -2)
    gradient = torch.cat([of_weight, weighted.sum(-1, keepdim=True)], -1)
    return gradient / max(1, residuals.shape[0]) if weights is None else gradient


def mean_gradients(last: LastLayer, rows: Tensor) -> Tensor:
    """Give the mean gradient of each of M sets of rows, shape (M, c, h+1), float32.

    Args:
        last: quantities of b rows.
        rows: which rows are in each set, shape (M, k), int64.
    """
    return torch.stack([mean_gradient(last.of(own)) for own in rows.unbind(0)])


def alignments(last: LastLayer, gradient: Tensor) -> Tensor:
    """Give each row's ⟨e [h, 1]ᵀ, G⟩ = eᵀ G [h, 1], shape (b,), float32.

    Args:
        last: quantities of b rows.
        gradient: G, shape (c, h+1).

    >>> last = LastLayer(torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [2.0]]))
    >>> alignments(last, torch.tensor([[1.0, 0.5]]))
    tensor([ 2.5000, -2.5000])
    """
    residuals, features = last.residuals.float(), last.features.float()
    # with rows last: on a CPU that takes half as long as h Gᵀ
    along = torch.addmm(gradient[:, -1:], gradient[:, :-1], features.flatten(0, -2).T)
    products = along.mul_(residuals.flatten(0, -2).T).sum(0)
    return _per_row(products.reshape(residuals.shape[:-1]))


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Give the cosine between gradients, shapes (..., c, h) to (...); 0 where either is 0.

    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
    tensor(0.6000)
    """
    norm = torch.linalg.vector_norm
    lengths = norm(one, dim=(-2, -1)) * norm(other, dim=(-2, -1))
    product = (one * other).sum((-2, -1))
    return torch.where(lengths > 0, product / torch.where(lengths > 0, lengths, 1.0), 0.0)


def _per_row(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1) if values.ndim > 1 else values
