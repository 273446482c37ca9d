"""Methods whose values may be negative: an order of all rows, and a chance of what is above 0."""

from collections.abc import Callable

import torch
from torch import Tensor

from adasel_stream.errors import MethodError
from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.related_methods.columns import told_by, usable_rows

__all__ = ["alignment", "reducible_loss"]


def alignment(batch: LossBatch) -> Preference:
    """Prefer rows whose gradient points along that of all candidates: ⟨e hᵀ, G⟩ = eᵀ G h.

    As a chance, rows that pull the other way count as 0.

    Raises:
        MethodError: the batch has no last-layer quantities.

    Source: design of this package; first order of how much a step on a row lowers the mean loss.

    >>> from adasel_stream.last_layer import LastLayer
    >>> last = LastLayer(torch.tensor([[1.0], [-3.0]]), torch.tensor([[2.0], [0.0]]))
    >>> alignment(LossBatch(torch.tensor([1.0, 4.0]), last_layer=last)).order(1)
    tensor([1., 3.])
    """
    if batch.last_layer is None:
        raise MethodError(
            "method 'alignment' needs last-layer quantities, the batch has only losses; give the "
            "loader model= with a linear last layer, or let score return Scored(losses, "
            "residuals, features)"
        )
    return _positive(batch, lambda: batch.alignments)


def reducible_loss(batch: LossBatch) -> Preference:
    """Prefer rows whose loss a reference model does not share: loss minus reference loss.

    A row whose reference loss is unknown is given the mean of the known ones, 0 without any. As a
    chance, what the reference model does worse at counts as 0.

    Raises:
        MethodError: the batch has no reference losses.

    Source: RHO-LOSS, Mindermann et al. 2022, Eq. (3); the paper's reference [4].

    >>> batch = LossBatch(torch.tensor([2.0, 2.0]), reference=torch.tensor([0.5, 2.5]))
    >>> reducible_loss(batch).order(1)
    tensor([ 1.5000, -0.5000])
    """
    reference = batch.reference
    if reference is None:
        raise MethodError(
            "method 'reducible_loss' needs losses of a reference model, the batch has none; give "
            "the loader reference=, a function like score or a LossRecord"
        )

    def reducible() -> Tensor:
        told, known = told_by(batch, reference)
        counted = known & usable_rows(batch)
        mean = torch.where(counted, told, 0.0).sum() / counted.sum().clamp(min=1)
        return batch.losses - torch.where(known, told, mean)

    return _positive(batch, reducible)


def _positive(batch: LossBatch, values: Callable[[], Tensor]) -> Preference:
    """Order rows by values of either sign, for any k; as chances, negative ones are 0."""

    def order(_k: int) -> Tensor:
        return values()

    return Preference(
        lambda: values().clamp(min=0), lambda: batch.rank(values()), order, proportional=True
    )
