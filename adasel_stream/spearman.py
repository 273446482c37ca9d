"""Rank correlation of a population, from rows that were drawn from it with unequal chances.

A draw that prefers some rows narrows what it sees, and the plain correlation of the drawn rows is
not that of all rows. Weights in proportion to 1/π, where a row is drawn with chance π, undo that:
the rank of a value is the weight below it and half the weight at it, so that the ranks of drawn
rows estimate ranks among all rows, and their weighted correlation estimates that of all rows.

Ranks are made within a batch and their products are summed over batches: what batches differ in as
wholes, such as the hour or how far a model has learnt, is neither rank nor correlation.
"""

import math
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["UNKNOWN", "Correlation", "Floats", "jackknifed", "rank_products", "spearman"]

Floats: TypeAlias = npt.NDArray[np.floating[Any]]

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


def rank_products(x: Floats, y: Floats, weights: Floats) -> npt.NDArray[np.float64]:
    """Give what the rank correlation of a batch is made of, to be summed over batches.

    Args:
        x: values, shape (n,), n of 1 or more, finite.
        y: values of the same rows, shape (n,), finite.
        weights: of the rows, shape (n,), above 0.

    Returns:
        Σ of xy, xx and yy over the batch's centred ranks, weighted so that the weights sum to n;
        shape (3,), float64.

    >>> rank_products(np.array([1.0, 2.0]), np.array([3.0, 3.0]), np.ones(2))
    array([0.   , 0.125, 0.   ])
    """
    shares = weights / weights.sum(dtype=np.float64)
    one, other = _centred_ranks(x, shares), _centred_ranks(y, shares)
    weighted = len(x) * shares
    return np.array([weighted @ (one * other), weighted @ one**2, weighted @ other**2])


def spearman(x: Floats, y: Floats, weights: Floats) -> float:
    """Give Spearman's rank correlation of weighted pairs, in [-1, 1]; 0 where either is constant.

    Args:
        x: values, shape (n,), n of 1 or more, finite.
        y: values of the same rows, shape (n,), finite.
        weights: of the rows, shape (n,), above 0.

    Source: Spearman 1904, with average ranks of ties; Horvitz and Thompson 1952 for the weights.

    >>> x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 2.0])
    >>> round(spearman(x, y, np.ones(4)), 3), round(spearman(x, y, np.array([1, 1, 1, 0.01])), 3)
    (0.4, 0.99)
    """
    return float(_correlation(rank_products(x, y, weights)))


def jackknifed(products: Floats) -> Correlation:
    """Give the correlation over several groups of rows, with an interval.

    The interval is that of the correlations without each of the groups, made where errors are
    alike, in artanh.

    Args:
        products: sums of `rank_products` of each group, shape (groups, 3).

    Source: Quenouille 1956 and Tukey 1958 for the jackknife; Fisher 1915 for artanh.

    >>> [round(each, 2) for each in jackknifed(np.array([[0.4, 1.0, 1.0], [0.6, 1.0, 1.0]]))]
    [0.5, 0.27, 0.67]
    """
    groups = len(products)
    if groups < 2:
        return UNKNOWN
    whole = products.sum(0)
    z = np.arctanh(np.clip(_correlation(whole - products), -_LARGEST, _LARGEST))
    value = float(_correlation(whole))
    middle = math.atanh(min(max(value, -_LARGEST), _LARGEST))
    error = math.sqrt((groups - 1) * float(z.var()))
    return Correlation(value, math.tanh(middle - 2 * error), math.tanh(middle + 2 * error))


def _correlation(products: Floats) -> npt.NDArray[np.float64]:
    """Divide Σ xy by the root of Σ xx Σ yy, on the last axis."""
    together, one, other = np.moveaxis(products, -1, 0)
    spread = np.sqrt(np.maximum(one * other, 0.0))
    flat = spread < _SMALLEST
    return np.clip(np.where(flat, 0.0, together / np.where(flat, 1.0, spread)), -1.0, 1.0)


def _centred_ranks(values: Floats, shares: Floats) -> npt.NDArray[np.float64]:
    """Give the share of rows below each value and half of that at it, less the mean."""
    order = values.argsort()  # of ties in any order: the weight at a value is summed up
    ascending = values[order]
    below = np.zeros(len(values) + 1)
    shares[order].cumsum(out=below[1:])
    first, last = (below[np.searchsorted(ascending, values, side)] for side in ("left", "right"))
    ranks: npt.NDArray[np.float64] = (first + last) / 2
    return ranks - shares @ ranks
