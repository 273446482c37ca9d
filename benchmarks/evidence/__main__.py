"""Run the grid, render what there is."""

import argparse
import sys
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


def beside(results: Path) -> Path:
    """Name the folder for the page of a part of the grid."""
    return results.with_name(f"{results.stem}-docs")


def main() -> int:
    """Run what is missing of the grid and render the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of data sets, see README.md beside this")
    parser.add_argument("--results", type=Path, default=Path("evidence.parquet"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), metavar="RATE")
    parser.add_argument(
        "--timed-rates",
        nargs="*",
        type=float,
        default=[0.2],
        metavar="RATE",
        help=f"at which {', '.join(TIMED)} also run for as long as full training",
    )
    parser.add_argument("--seeds", type=int, help="by default 10 on small tables, 5 elsewhere")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes of one thread each")
    parser.add_argument("--render", action="store_true", help="render what there is, run nothing")
    parser.add_argument(
        "--quick", action="store_true", help="a small grid, and check its orderings"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        help="where results.md goes: by default docs/, or beside the results if only a part is run",
    )
    options = parser.parse_args()
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
        render(results, options.docs or (ROOT / "docs" if whole else beside(options.results)))
    except (DataError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {options.results} has what was done, run again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
