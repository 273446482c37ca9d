"""The paper in plain numpy, float64: what every faster implementation is compared with.

Written from the paper, never from the package's code. Every function works on finite rows only;
`finite_rows` says which those are, and the caller maps indices back. Slow and obvious on purpose.
Letters in shapes: n finite candidates, k selected, M methods.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.int64]

EQ1_MARGIN = 1e-6  # Eq. (1) diverges at 1: the largest loss is put this far below it
RANK_SHARPNESS = 3.0
TINY = 1e-12  # a previous method loss below this says nothing about relative change
READINGS = ("softmax", "vote", "rank", "proportional")


class Candidates(NamedTuple):
    """What is known of a batch, each of shape (n,); `noise` is fresh for every batch."""

    losses: Array
    gradient_norms: Array
    noise: Array


def finite_rows(*columns: Array) -> Rows:
    """Indices of the rows that are finite in every column; the others are in no statistic."""
    return np.flatnonzero(np.all([np.isfinite(column) for column in columns], axis=0))


def number_selected(batch_rows: int, rate: float) -> int:
    """Paper policy: min(b, max(1, floor(rate*b + 1/2))), and 0 of an empty batch."""
    return min(batch_rows, max(1, math.floor(rate * batch_rows + 0.5)))


def number_due(rate: float, seen: int, taken: int, batch_rows: int) -> int:
    """Carried fraction: what brings the total taken to floor(rate * total seen)."""
    return max(0, min(batch_rows, math.floor(rate * (seen + batch_rows)) - taken))


def top_k(scores: Array, k: int) -> Rows:
    """Eq. (6): the k rows of the largest scores, best first; the lower index wins a tie."""
    return np.argsort(-scores, kind="stable")[:k].astype(np.int64)


# --- candidate methods, section 3.1 ------------------------------------------------------------


def eq1(losses: Array) -> Array:
    """Eq. (1) made safe: from zero, scaled just below one, then 1/2 log((1+l)/(1-l))."""
    shifted = losses - min(0.0, float(losses.min(initial=0.0)))
    largest = float(shifted.max(initial=0.0))
    if largest == 0.0:
        return np.zeros_like(losses)
    return np.arctanh(shifted / largest * (1.0 - EQ1_MARGIN))


def preference(method: str, batch: Candidates) -> Array:
    """What a method prefers, larger first, shape (n,).

    `coresets_1` wants both ends of the losses: its preference is the distance of the average
    rank from the middle rank, and `picks` takes its two halves apart.
    """
    losses = batch.losses
    if method == "coresets_1":
        return np.abs(average_ranks(losses) - (len(losses) - 1) / 2)
    preferences: dict[str, Array] = {
        "uniform": batch.noise,
        "big_loss": losses,
        "small_loss": -losses,
        "gradient_norm": batch.gradient_norms,
        "adaboost": eq1(losses),
        "coresets_2": -np.abs(losses - losses.sum() / max(1, len(losses))),
    }
    return preferences[method]


def picks(method: str, batch: Candidates, k: int) -> Rows:
    """The k rows that a method alone would choose, shape (k,).

    `coresets_1`: the ceil(k/2) largest losses, then the floor(k/2) smallest of the rows left,
    so that the halves never meet; in each half the lower index wins a tie.
    """
    if method != "coresets_1":
        return top_k(preference(method, batch), k)
    losses = batch.losses
    largest = top_k(losses, (k + 1) // 2)
    left = np.setdiff1d(np.arange(len(losses)), largest)
    return np.concatenate([largest, left[top_k(-losses[left], k // 2)]])


# --- Eq. (2): importances ----------------------------------------------------------------------


def softmax(values: Array) -> Array:
    """exp(v) / sum exp(v), the largest subtracted first."""
    if len(values) == 0:
        return values.copy()
    powers: Array = np.exp(values - values.max())
    total: Array = powers.sum(keepdims=True)
    return powers / total


def average_ranks(values: Array) -> Array:
    """Rank of each value from 0 (smallest); equal values share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes) - 1
    return (last - (sizes - 1) / 2)[group.reshape(-1)]


def rank_softmax(values: Array) -> Array:
    """softmax(3u), u the average rank scaled to [-1, 1]; a single row has u = 0."""
    if len(values) < 2:
        return np.ones_like(values)
    return softmax(RANK_SHARPNESS * (2 * average_ranks(values) / (len(values) - 1) - 1))


def proportional(values: Array) -> Array:
    """(v - min(0, min v)) / sum; equal shares when that sum is 0."""
    shifted = values - min(0.0, float(values.min(initial=0.0)))
    largest = float(shifted.max(initial=0.0))
    if largest == 0.0:
        return np.full_like(values, 1 / max(1, len(values)))
    shares = shifted / largest  # a sum of huge or subnormal values stays in range
    total: Array = shares.sum(keepdims=True)
    return shares / total


def importances(reading: str, method: str, batch: Candidates, k: int) -> Array:
    """Eq. (2) under one of the four readings: shape (n,), not negative, sum 1."""
    if reading == "vote":
        votes = np.zeros_like(batch.losses)
        votes[picks(method, batch, k)] = 1 / max(1, k)
        return votes
    if reading == "rank" and method == "coresets_1":
        # the two rows at distance d from the middle share the ranks 2d - 1 and 2d
        places = np.maximum(2 * preference(method, batch) - 0.5, 0.0)
        return softmax(3.0 * (2 * places / max(1, len(places) - 1) - 1))
    if reading == "rank":
        return rank_softmax(preference(method, batch))
    share = {"softmax": softmax, "proportional": proportional}[reading]
    if method == "coresets_1":  # half of it is big_loss, half is small_loss
        return (share(batch.losses) + share(-batch.losses)) / 2
    return share(preference(method, batch))


# --- Eq. (3): method losses and weights --------------------------------------------------------


def method_loss_of_picks(losses: Array, chosen: Rows) -> float:
    """The reading used: mean loss of the k rows that the method alone would choose."""
    return float(losses[chosen].sum() / max(1, len(chosen)))


def method_loss_weighted(losses: Array, importance: Array) -> float:
    """The other reading: the loss expected under the method's importances."""
    return float((importance * losses).sum())


def relative_change(previous: Array, now: Array, beta: float) -> Array:
    """The exponent of Eq. (3), cut at 100; 0 where the previous loss is unknown or about 0."""
    known = np.abs(previous) > TINY
    scale = np.where(known, np.abs(previous), 1.0)
    return beta * np.clip(np.where(known, (previous - now) / scale, 0.0), -100.0, 100.0)


def eq3(log_weights: Array, previous: Array, now: Array, beta: float) -> Array:
    """Eq. (3) on log weights, normalised, shape (M,); `previous` is NaN at the first step."""
    changed: Array = log_weights + relative_change(previous, now, beta)
    changed = changed - changed.max()
    return changed - math.log(np.exp(changed).sum())


def eq4(losses: Array, step: int, exponent: float | None) -> Array:
    """Log of the reward, shape (n,): -t^e l / sum l^2 with the largest |l| divided out.

    Always finite: a coefficient beyond the range of float64 is cut to its largest number.
    """
    largest = float(np.abs(losses).max(initial=0.0))
    if exponent is None or largest == 0.0:
        return np.zeros_like(losses)
    scaled = losses / largest
    with np.errstate(over="ignore"):
        coefficient = min(np.float64(step) ** exponent / largest, np.finfo(np.float64).max)
    share: Array = scaled / (scaled * scaled).sum()
    return -float(coefficient) * share


def eq5(log_reward: Array, method_weights: Array, alphas: Array) -> Array:
    """Log of the scores, shape (n,): log r + log sum_m w_m alpha_m; alphas (M, n)."""
    with np.errstate(divide="ignore"):
        return log_reward + np.log(method_weights @ alphas)


# --- the unbiased draw -------------------------------------------------------------------------


def proposal(log_scores: Array, exploration: float) -> Array:
    """Exploration mixed in: p = (1-e) s / sum s + e/n, shape (n,), sum 1."""
    return (1 - exploration) * softmax(log_scores) + exploration / max(1, len(log_scores))


def inclusion(p: Array, k: int) -> Array:
    """Water filling: pi = min(1, c p) with sum k; tries every number of full rows, largest p first.

    `p` must be positive.
    """
    pi = np.ones_like(p) if k else np.zeros_like(p)
    order = np.argsort(-p, kind="stable")
    for full in range(k):
        left = order[full:]
        c = (k - full) / math.fsum(p[left])
        if c * p[left[0]] <= 1:
            pi[left] = c * p[left]
            break
    return pi


def systematic(pi: Array, permutation: Rows, u: float) -> Rows:
    """Walk the rows in the permuted order; take each that a tick u, u+1, ... falls into."""
    reached = np.cumsum(pi[permutation])
    reached[-1:] = np.round(reached[-1:])  # the sum is k; rounding must not lose the last tick
    chosen: list[int] = []
    for row, end in zip(permutation, reached, strict=True):
        if len(chosen) + u < end:
            chosen.append(int(row))
    return np.array(chosen, dtype=np.int64)


def importance_weights(pi: Array, chosen: Rows) -> Array:
    """Of the chosen rows, k / (n pi): mean(weight * loss) estimates the batch's mean loss."""
    return len(chosen) / (len(pi) * pi[chosen])


# --- production updates of the method weights --------------------------------------------------


def with_floor(log_weights: Array, floor: float) -> Array:
    """(1 - M floor) softmax(log w) + floor; log w itself is kept without the floor."""
    return (1 - len(log_weights) * floor) * softmax(log_weights) + floor


def variance_gain(alphas: Array, p: Array, pi: Array, chosen: Rows, fresh_squared: Array) -> Array:
    """Shape (M,): sum_S g2 alpha/(pi p^2) over sum_S g2/(pi p); 1 when no gradient is left.

    It is the relative slope of the estimator's variance: above 1, more of the method is better.
    """
    worth = fresh_squared / (pi[chosen] * p[chosen])
    if not worth.any():
        return np.ones(len(alphas))
    shares: Array = worth / worth.sum()
    return (alphas[:, chosen] / p[chosen]) @ shares


def variance_update(log_weights: Array, gain: Array) -> Array:
    """Log w <- 0.995 log w + 0.1 (clip(G, 0, 5) - 1), not normalised."""
    return 0.995 * log_weights + 0.1 * (np.clip(gain, 0.0, 5.0) - 1)


def progress_update(
    log_weights: Array, average: Array, square: Array, now: Array
) -> tuple[Array, Array, Array]:
    """Log w <- 0.99 log w + 0.1 clip(d/s, +-5), and the new m and q; m is NaN at first.

    d = m_{t-1} - m_t, m the running mean of a method's losses, so that the d telescope; s is the
    root mean square of d over time (running mean q) and methods.
    """
    average = np.where(np.isfinite(average), average, now)
    moved = average + 0.1 * (now - average)
    fall = average - moved
    square = square + 0.1 * (fall**2 - square)
    scale = math.sqrt(square.mean()) or 1.0
    return 0.99 * log_weights + 0.1 * np.clip(fall / scale, -5.0, 5.0), moved, square


# --- Algorithm 2 and what to report ------------------------------------------------------------


def accumulate(groups: Iterable[list[int]], batch_size: int) -> tuple[list[list[int]], list[int]]:
    """Lines 8 to 11: add to C, emit exactly batch_size rows first in first out, carry the rest."""
    waiting: list[int] = []
    emitted: list[list[int]] = []
    for group in groups:
        waiting = waiting + group
        while len(waiting) >= batch_size:
            emitted.append(waiting[:batch_size])
            waiting = waiting[batch_size:]
    return emitted, waiting


def variance_ratio(p: Array) -> tuple[float, float]:
    """Tau = sqrt(n sum p^2), 1 when selection cannot reduce variance; and 1 / sum p^2."""
    square_sum = float((p * p).sum())
    return math.sqrt(len(p) * square_sum), 1 / square_sum
