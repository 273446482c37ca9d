"""What the paper publishes about tasks that are run here as well.

Table 5 stands with the tasks themselves, as `Task.published`. AdaSelection, the column of the
contestant `paper`, is there the best of several variants.
"""

from collections.abc import Mapping

__all__ = ["COLUMNS", "TABLE_4"]

COLUMNS = {
    "full": "no sampling",
    "paper": "AdaSelection",
    "uniform": "uniform",
    "big_loss": "big loss",
    "small_loss": "small loss",
    "adaboost": "AdaBoost",
    "gradient_norm": "gradient norm",
    "coresets_1": "coresets 1",
    "coresets_2": "coresets 2",
}
"""Contestants of the paper in the order of its tables, by their names here."""


def _row(*ranks: float | None) -> dict[str, float]:
    return {name: rank for name, rank in zip(COLUMNS, ranks, strict=True) if rank is not None}


TABLE_4: Mapping[str, Mapping[str, float]] = {
    "cifar10": _row(3.5, 8.25, 8.25, 1.75, 4.75, 7.5, 3.0, 7.0, 11.75),
    "line": _row(7.4, 1.8, 9.6, 8.6, 6.8, 7.4, 9.4, 7.4, 7.6),
    "bike-daily": _row(5.6, 3.8, 4.0, 4.2, 10.8, 12.0, 5.6, 7.0, 9.6),
    "wikitext": _row(1.6, 2.0, 2.4, 4.4, 7.8, 8.2, None, 5.2, 5.4),
}
"""Average ranks over rates of 0.1 to 0.5, among more contestants than are published."""
