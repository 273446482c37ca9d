"""Numbers and tables as Markdown."""

import math
from collections.abc import Sequence

from adasel_stream.charts import significant
from benchmarks.evidence.paired import Difference, Mean

__all__ = ["errors", "number", "percent", "table", "with_error"]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Write a table; the first column is text, the others are numbers.

    >>> print(table(["who", "loss"], [["uniform", "0.1"]]))
    | who | loss |
    |---|--:|
    | uniform | 0.1 |
    """
    rule = "|---|" + "--:|" * (len(headers) - 1)
    return "\n".join([_line(headers), rule, *map(_line, rows)])


def number(value: float, digits: int = 4) -> str:
    """Write a value; a dash stands for none.

    >>> number(0.123456), number(math.nan)
    ('0.1235', '-')
    """
    return significant(value, digits) if math.isfinite(value) else "-"


def percent(share: float) -> str:
    """Write a share in percent.

    >>> percent(0.667), percent(-0.001), percent(math.nan)
    ('67 %', '0 %', '-')
    """
    return f"{round(100 * share)} %" if math.isfinite(share) else "-"


def with_error(mean: Mean) -> str:
    """Write a mean and its standard error.

    >>> with_error(Mean(0.25, 0.01))
    '0.2500 ± 0.010'
    """
    if math.isnan(mean.value) or math.isnan(mean.error):
        return number(mean.value)
    return f"{number(mean.value)} ± {number(mean.error, 2)}"


def errors(difference: Difference) -> str:
    """Write a paired difference in standard errors, positive where it is better.

    >>> errors(Difference(-1.0, 0.5, 5)), errors(Difference(1.0, 0.0, 5))
    ('-2.0', '+∞')
    """
    value = difference.in_errors
    if math.isinf(value):
        return "+∞" if value > 0 else "-∞"
    return "-" if math.isnan(value) else f"{value:+.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
