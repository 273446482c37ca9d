"""The methods of the related work in plain numpy, float64, as `reference` has the paper's seven.

Written from the sources' formulas, never from the package's code; finite rows only. Letters in
shapes: n finite candidates, k selected.
"""

from typing import NamedTuple

import numpy as np

from tests.reference import Array

HISTORY_SHARE = 0.2
PRUNED_SHARE = 0.5


class Company(NamedTuple):
    """What is known beside losses: `gradients` (n, c, h+1), `window` any length, others (n,)."""

    losses: Array
    gradient_norms: Array
    gradients: Array
    reference: Array
    previous: Array
    window: Array


def earlier_losses(batch: Company) -> Array:
    """The losses of the window, or the candidates' own before it has any."""
    known = batch.window[~np.isnan(batch.window)]
    return known if len(known) else batch.losses


def cdf(batch: Company, power: float = 1.0) -> Array:
    """Selective-Backprop's chance: the share of earlier losses not above one's own, to a power."""
    earlier = earlier_losses(batch)
    return np.array([(earlier <= loss).mean() for loss in batch.losses]) ** power


def reducible(batch: Company) -> Array:
    """RHO-LOSS: loss minus reference loss, the mean of the known ones where that is unknown."""
    known = np.isfinite(batch.reference)
    mean = batch.reference[known].mean() if known.any() else 0.0
    return batch.losses - np.where(known, batch.reference, mean)


def alignments(batch: Company) -> Array:
    """Inner product of each row's gradient with the mean of all."""
    if not len(batch.losses):
        return batch.losses
    mean = batch.gradients.mean(0)
    return np.array([(gradient * mean).sum() for gradient in batch.gradients])


def evolved(batch: Company) -> Array:
    """Evolved sampling's weight with one recorded loss as history, not below 0."""
    before = np.where(np.isfinite(batch.previous), batch.previous, batch.losses)
    weights: Array = HISTORY_SHARE * before + (1 - HISTORY_SHARE) * batch.losses
    return np.maximum(weights, 0.0)


def success_variance(batch: Company) -> Array:
    """p(1 - p) with p = exp(-loss)."""
    losses = np.maximum(batch.losses, 0.0)
    return np.exp(-losses) * -np.expm1(-losses)


def kept(batch: Company) -> Array:
    """InfoBatch's chance of being kept: 1 - r below the mean, else 1."""
    earlier = earlier_losses(batch)
    mean = earlier.mean() if len(earlier) else 0.0
    return np.where(batch.losses < mean, 1 - PRUNED_SHARE, 1.0)


def values(method: str, batch: Company) -> Array:
    """What a method gives as chances up to a factor, or wants: shape (n,)."""
    losses = batch.losses
    mean = losses.sum() / max(1, len(losses))
    given: dict[str, Array] = {
        "selective_backprop": cdf(batch),
        "reducible_loss": np.maximum(reducible(batch), 0.0),
        "one_backward": -np.abs(losses - mean),
        "alignment": np.maximum(alignments(batch), 0.0),
        "gradient_size": batch.gradient_norms,
        "loss_history": evolved(batch),
        "learnability": success_variance(batch),
        "soft_prune": kept(batch),
    }
    return given[method]


def best_match(losses: list[int], k: int) -> float:
    """How far at least the mean of k of these whole losses is from the mean of all.

    By dynamic programming: the sums that each number of rows can have, row by row.
    """
    sums: list[set[int]] = [{0}] + [set() for _ in range(k)]
    for loss in losses:
        for rows in range(k, 0, -1):
            sums[rows] |= {total + loss for total in sums[rows - 1]}
    mean = sum(losses) / len(losses)
    return min(abs(total / k - mean) for total in sums[k])
