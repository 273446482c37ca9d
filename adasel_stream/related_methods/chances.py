"""Methods that say how often to draw a row: chances up to a factor, never negative."""

import torch
from torch import Tensor

from adasel_stream.loss_batch import LossBatch, Method, Preference
from adasel_stream.related_methods.columns import told_by, usable_rows

__all__ = [
    "gradient_size",
    "learnability",
    "loss_history",
    "selective_backprop",
    "selective_backprop_with",
    "soft_prune",
]

HISTORY_SHARE = 0.2
"""Share β₁ of a row's history in `loss_history`, in [0, 1]."""

PRUNED_SHARE = 0.5
"""Share r of well-learnt rows that `soft_prune` leaves out; the default of its published code."""


def selective_backprop(batch: LossBatch) -> Preference:
    """Draw a row as often as losses of the stream's last rows were not above its own.

    Its chance is CDF(loss)^β over the window, or over the candidates themselves while the window
    is empty. The power β is 1; `selective_backprop_with` takes others.

    Source: Selective-Backprop, Jiang et al. 2019. Their published example takes β = 3 and a window
    of 1,024 losses, of which it counts the smaller ones only; ties count here, as in a CDF.

    >>> batch = LossBatch(torch.tensor([1.0, 3.0]), window=torch.tensor([0.0, 2.0, 2.5, 4.0]))
    >>> selective_backprop(batch).values()
    tensor([0.2500, 0.7500])
    """
    return Preference(lambda: _percentile(batch), proportional=True)


def selective_backprop_with(power: float) -> Method:
    """Make `selective_backprop` with another power β, at least 0: the larger, the choosier.

    Where losses keep their distribution, the mean chance is 1/(β+1).

    Raises:
        ValueError: a power below 0.

    >>> batch = LossBatch(torch.tensor([1.0, 3.0]), window=torch.tensor([0.0, 2.0, 2.5, 4.0]))
    >>> selective_backprop_with(2)(batch).values()
    tensor([0.0625, 0.5625])
    """
    if not power >= 0:
        raise ValueError(f"power must be at least 0, got {power}")

    def selective_backprop(batch: LossBatch) -> Preference:
        return Preference(lambda: _percentile(batch) ** power, proportional=True)

    return selective_backprop


def gradient_size(batch: LossBatch) -> Preference:
    """Draw in proportion to the gradient norm where it is known, or to what is expected of it.

    Without a last layer that is what rows with such losses had when they were trained on, and the
    loss itself while too few were. The variance of an unbiased gradient estimate is least where
    chances follow gradient norms.

    Source: Katharopoulos and Fleuret 2018, section 3.

    >>> gradient_size(LossBatch(torch.tensor([-1.0, 3.0]))).values()
    tensor([1., 3.])
    """
    return Preference(lambda: batch.magnitudes, proportional=True)


def loss_history(batch: LossBatch) -> Preference:
    """Draw in proportion to 0.2 times the loss that a row had before and 0.8 times that of now.

    The source weighs a row by w = β₁ s + (1 - β₁) loss, where s is the moving average of its
    earlier losses at another rate β₂. That is the average with this loss taken in, plus β₂ - β₁
    times what the loss differs from s. Departs from it in s: the last recorded loss stands for it,
    and β₂ falls out. A row without one has no history but its loss. Negative values count as 0.

    Source: evolved sampling, Cheng, Li and Bian 2025 (arXiv 2509.23461).

    >>> batch = LossBatch(torch.tensor([1.0, 1.0]), previous=torch.tensor([2.0, torch.nan]))
    >>> loss_history(batch).values()
    tensor([1.2000, 1.0000])
    """

    def evolved() -> Tensor:
        if batch.previous is None:
            return batch.losses.clamp(min=0)
        told, known = told_by(batch, batch.previous)
        before = torch.where(known, told, batch.losses)
        return torch.lerp(batch.losses, before, HISTORY_SHARE).clamp(min=0)

    return Preference(evolved, proportional=True)


def learnability(batch: LossBatch) -> Preference:
    """Draw in proportion to p(1 - p) with p = exp(-loss): most where the model is undecided.

    Losses are taken for negative log-likelihoods, p for the likelihood of the right answer; a
    negative loss counts as 0. Rows that are learnt and rows that look hopeless, such as those with
    wrong labels, are both left alone.

    Source: the variance of a success that has probability p; Rutherford et al. 2024 and Foster et
    al. 2025 choose tasks by it.

    >>> learnability(LossBatch(torch.tensor([0.0, 0.6931, 50.0]))).values().round(decimals=3)
    tensor([0.0000, 0.2500, 0.0000])
    """

    def undecided() -> Tensor:
        surprise = -batch.losses.clamp(min=0)
        return -surprise.exp() * surprise.expm1()  # 1 - p would be rounded to 0 near p = 1

    return Preference(undecided, proportional=True)


def soft_prune(batch: LossBatch) -> Preference:
    """Draw rows with a loss below the mean half as often as others.

    The mean is that of the stream's last rows, or of the candidates while there are none. As in the
    source, an unbiased draw weighs what is left of the well-learnt rows the more.

    Source: InfoBatch, Qin et al. 2024: its soft pruning with r = 0.5, on a stream instead of an
    epoch.

    >>> soft_prune(LossBatch(torch.tensor([1.0, 3.0]))).values()
    tensor([0.5000, 1.0000])
    """

    def kept() -> Tensor:
        below = batch.losses < _history(batch).nanmean()
        return torch.where(below, 1 - PRUNED_SHARE, 1.0).to(batch.losses.dtype)

    return Preference(kept, proportional=True)


def _history(batch: LossBatch) -> Tensor:
    """Give the window, or the candidates where it is empty, shape (n,), NaN for no loss."""
    losses, window = batch.losses, batch.window
    own = torch.where(usable_rows(batch), losses, torch.nan)
    if window is None:
        return own
    instead = torch.where(window.isnan().all(), own, torch.nan)
    return torch.cat([window.to(losses.dtype), instead])


def _percentile(batch: LossBatch) -> Tensor:
    """Give the share of the history's losses that are not above each loss, shape (b,)."""
    losses, history = batch.losses.contiguous(), _history(batch)
    ascending = history.nan_to_num(nan=torch.inf).sort().values
    not_above = torch.searchsorted(ascending, losses, right=True).to(losses.dtype)
    return not_above / (~history.isnan()).sum().clamp(min=1)
