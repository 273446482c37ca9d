"""Rank correlation of a population, from rows that were drawn from it with unequal chances.

A draw that prefers some rows narrows what it sees, and the plain correlation of the drawn rows is
not that of all rows. Weights in proportion to 1/π, where a row is drawn with chance π, undo that:
the rank of a value is the weight below it and half the weight at it, so that the ranks of drawn
rows estimate ranks among all rows, and their weighted correlation estimates that of all rows.
"""

import math
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Correlation", "jackknifed", "spearman"]

Floats: TypeAlias = npt.NDArray[np.floating[Any]]

_GROUPS: Final = 20

_SMALLEST: Final = 1e-12
"""Ranks that spread less differ by rounding alone."""

_LARGEST: Final = 1 - 1e-9
"""Correlations count as no larger, so that their Fisher transform is finite."""


class Correlation(NamedTuple):
    """A correlation with an interval of two standard errors, all in [-1, 1]; NaN where unknown."""

    value: float
    low: float
    high: float


UNKNOWN: Final = Correlation(math.nan, math.nan, math.nan)


def spearman(x: Floats, y: Floats, weights: Floats) -> npt.NDArray[np.float64]:
    """Give Spearman's rank correlation of weighted pairs; 0 where either is constant.

    Args:
        x: values, shape (n,), finite.
        y: values of the same rows, shape (n,), finite.
        weights: at least 0, shape (..., n); each of these sets of weights has its correlation.

    Returns:
        in [-1, 1], float64, shape (...).

    Source: Spearman 1904, with average ranks of ties; Horvitz and Thompson 1952 for the weights.

    >>> x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 2.0])
    >>> spearman(x, y, np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])).round(3)
    array([0.4, 1. ])
    """
    shares = np.asarray(weights, np.float64)
    shares = shares / shares.sum(-1, keepdims=True)
    one, other = _centred_ranks(x, shares), _centred_ranks(y, shares)
    weighted = shares * one
    together = _sums(weighted, other)
    spread = np.sqrt(_sums(weighted, one) * _sums(shares * other, other))
    constant = spread < _SMALLEST
    correlations = np.where(constant, 0.0, together / np.where(constant, 1.0, spread))
    return np.clip(correlations, -1.0, 1.0)


def jackknifed(x: Floats, y: Floats, weights: Floats) -> Correlation:
    """Give the correlation with an interval, from rows in the order in which they came.

    The interval is that of the correlations without each twentieth of the rows, so that rows of a
    batch, which are alike, are left out together. It is made where errors are alike, in artanh.

    Args:
        x: values, shape (n,), finite.
        y: values of the same rows, shape (n,), finite.
        weights: of the rows, shape (n,), at least 0.

    Source: Quenouille 1956 and Tukey 1958 for the jackknife; Fisher 1915 for artanh.

    >>> x = np.arange(100.0)
    >>> [round(each, 2) for each in jackknifed(x, (x + 30) % 100, np.ones(100))]
    [-0.26, -0.68, 0.29]
    """
    n = len(x)
    if n < _GROUPS:
        return UNKNOWN
    kept = (
        np.arange(n) * _GROUPS // n != np.arange(_GROUPS + 1)[:, None]
    )  # the last leaves none out
    with np.errstate(invalid="ignore"):  # a group may hold all the weight
        correlations = spearman(x, y, kept * weights)
    if not np.isfinite(correlations).all():
        return UNKNOWN
    z = np.arctanh(np.clip(correlations, -_LARGEST, _LARGEST))
    error = math.sqrt((_GROUPS - 1) * z[:-1].var())
    low, high = np.tanh([z[-1] - 2 * error, z[-1] + 2 * error]).tolist()
    return Correlation(float(correlations[-1]), low, high)


def _centred_ranks(values: Floats, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give the share of rows below each value and half of that at it, less the mean."""
    order = values.argsort()  # of ties in any order: the weight at a value is summed up
    ascending = values[order]
    below = np.zeros((*shares.shape[:-1], len(values) + 1))
    shares.take(order, -1).cumsum(-1, out=below[..., 1:])
    ranks: npt.NDArray[np.float64] = below.take(np.searchsorted(ascending, values, "left"), -1)
    ranks += below.take(np.searchsorted(ascending, values, "right"), -1)
    ranks /= 2
    ranks -= _sums(shares, ranks)[..., None]
    return ranks


def _sums(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum products over the last axis, without an array of them."""
    sums: npt.NDArray[np.float64] = np.einsum("...n,...n->...", one, other)
    return sums
