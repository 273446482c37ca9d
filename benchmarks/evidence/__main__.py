"""Run the grid, render what there is."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.grid import ROOT, Grid, run
from benchmarks.evidence.problem import DataError
from benchmarks.evidence.quick import check
from benchmarks.evidence.report import render
from benchmarks.evidence.store import Results, ResultsError
from benchmarks.evidence.tasks import TASKS

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)

TIMED = ("uniform", "auto", "auto + serving", "unbiased", "unbiased + serving", "big_loss", "paper")
"""Contestants that also run with the time that full training takes."""


def a_rate(text: str) -> float:
    """Read a sampling rate, in (0, 1]."""
    rate = float(text)
    if not 0 < rate <= 1:
        raise argparse.ArgumentTypeError(f"a rate must be in (0, 1], got {text}")
    return rate


def a_count(text: str) -> int:
    """Read a whole number of 1 or more."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"it must be 1 or more, got {text}")
    return count


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def beside(results: Path) -> Path:
    """Name the folder for the page of a part of the grid."""
    return results.with_name(f"{results.stem}-docs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing of the grid and render the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=f"{__doc__} A run that was stopped or killed goes on when it is run again.",
    )
    parser.add_argument("--data", type=Path, help="folder of data sets, see README.md beside this")
    parser.add_argument(
        "--results", type=Path, default=Path("evidence.parquet"), help="by default evidence.parquet"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=list(TASKS),
        metavar="NAME",
        help=f"by default all: {', '.join(TASKS)}",
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        metavar="NAME",
        help=f"by default all: {'; '.join(CONTESTANTS)}",
    )
    parser.add_argument(
        "--rates",
        nargs="+",
        type=a_rate,
        default=list(RATES),
        metavar="RATE",
        help="by default 0.1 to 0.5",
    )
    parser.add_argument(
        "--timed-rates",
        nargs="*",
        type=a_rate,
        default=[0.2],
        metavar="RATE",
        help=f"by default 0.2; at these {', '.join(TIMED)} also run for as long as full training",
    )
    parser.add_argument("--seeds", type=a_count, help="by default 10 on small tables, 5 elsewhere")
    parser.add_argument(
        "--jobs", type=a_count, default=2, help="worker processes of one thread each, by default 2"
    )
    parser.add_argument("--render", action="store_true", help="render what there is, run nothing")
    parser.add_argument(
        "--quick", action="store_true", help="a small grid, and check its orderings"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        help="where results.md goes: by default docs/, or beside the results if only a part is run",
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)  # also where a shell had it ignored in the background
    try:
        if options.quick:
            return check(options.jobs)
        results = Results(options.results)
        if not options.render:
            timed = [name for name in TIMED if name in options.contestants]
            rates = [rate for rate in options.timed_rates if rate in options.rates]
            grid = Grid(
                options.tasks, options.contestants, options.rates, options.seeds, timed, rates
            )
            run(grid, results, options.data, options.jobs)
        whole = (options.tasks, options.contestants, options.rates) == (
            *(list(TASKS), list(CONTESTANTS), list(RATES)),
        )
        docs = options.docs or (ROOT / "docs" if whole else beside(options.results))
        render(results, docs)
        print(f"results in {options.results}, shown in {docs / 'results.md'}")
    except (DataError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {options.results} has what was done, run again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
