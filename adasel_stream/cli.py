"""The command `adasel-stream`: the demo, reports of run logs, and looking inside a record."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from adasel_stream.demo.settings import Format, Losses, Settings
from adasel_stream.errors import AdaselError
from adasel_stream.inspection.commands import add_record
from adasel_stream.report import Tile, render_report, run_sections
from adasel_stream.runlog import RunRecords, effective_records, read_run_log

__all__ = ["main"]

INTERRUPTED = 130
"""Exit code of a process that ended by Ctrl-C."""

_DEFAULT = "(default: %(default)s)"

_READ = {
    *("samples_seen_total", "samples_selected_total", "phase_seconds_total"),
    *("loss", "method_weight_ratio", "record_lookups_total"),
}
"""What a report needs of a record."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: what follows the command's name; those of the process by default.

    Returns:
        0, also after SIGTERM if a snapshot was left; 1 after a failure, which is told in a
        sentence on standard error; 2 for wrong arguments; 130 after Ctrl-C.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "run.jsonl").write_text("")
    ...     main(["report", f"{folder}/run.jsonl", "--out", f"{folder}/report.html"])
    1
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except (AdaselError, OSError) as error:
        print(f"adasel-stream: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("adasel-stream: stopped", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adasel-stream", description="Adaptive selection of training samples from a stream."
    )
    parser.add_argument("--version", action="version", version=version("adasel-stream"))
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_report(commands)
    add_record(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="learn from a year of flights which will be late, selecting and not selecting",
        description=(
            "Train the same network on a year of flights, in order of departure, four ways: on "
            "what AdaSelection selects, on as many flights taken evenly, on so many taken evenly "
            "that they cost as much, and on all of them. With --losses serving there is a fifth: a "
            "second process predicts the flights and writes their losses, and AdaSelection selects "
            "by those, beside AdaSelection that scores flights itself. "
            "Writes run logs and report.html. Ctrl-C and SIGTERM leave a snapshot, and the same "
            "command goes on from it; a second one ends the run at once."
        ),
    )
    default = Settings()
    demo.add_argument(
        "--out", type=Path, default=default.out, help=f"folder for the results {_DEFAULT}"
    )
    demo.add_argument(
        "--data", type=Path, help="folder for the prepared flights; in --out if not given"
    )
    demo.add_argument(
        "--rows", type=int, help="flights to use, the first of the year; all if not given"
    )
    demo.add_argument(
        "--rate",
        type=float,
        default=default.sampling_rate,
        help=f"share of flights to train on {_DEFAULT}",
    )
    demo.add_argument(
        "--losses",
        choices=get_args(Losses),
        default=default.losses,
        help=f"where AdaSelection's losses come from {_DEFAULT}",
    )
    demo.add_argument(
        "--seed", type=int, default=default.seed, help=f"of first weights and draws {_DEFAULT}"
    )
    demo.add_argument(
        "--format",
        choices=get_args(Format),
        default=default.format,
        help=f"kind of shard to read {_DEFAULT}",
    )
    demo.add_argument(
        "--port",
        type=int,
        default=default.port,
        help=f"of the live metrics; 0 takes a free one {_DEFAULT}",
    )
    demo.add_argument(
        "--save-every",
        type=float,
        default=default.save_every_s,
        metavar="SECONDS",
        help=f"time between two snapshots {_DEFAULT}",
    )
    demo.add_argument("--fresh", action="store_true", help="start over, whatever snapshot is there")
    demo.set_defaults(run=_demo)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="draw run logs as one HTML page",
        description="Draw one or several run logs as one HTML page that needs no network.",
    )
    report.add_argument("logs", nargs="+", type=Path, metavar="RUN.jsonl", help="run logs")
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), help=f"page to write {_DEFAULT}"
    )
    report.set_defaults(run=_report)


def _demo(chosen: argparse.Namespace) -> int:
    try:
        settings = Settings(
            out=chosen.out,
            data=chosen.data,
            rows=chosen.rows,
            sampling_rate=chosen.rate,
            losses=chosen.losses,
            seed=chosen.seed,
            format=chosen.format,
            port=chosen.port,
            save_every_s=chosen.save_every,
            fresh=chosen.fresh,
        )
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    # here, since it loads torch, which no other command needs
    from adasel_stream.demo.command import run_demo

    return run_demo(settings)


def _report(chosen: argparse.Namespace) -> int:
    arms: dict[str, list[dict[str, Any]]] = {}
    damaged = 0
    last: dict[str, Mapping[str, Any]] = {}
    for log in chosen.logs:
        held = _records(log)
        damaged += held.damaged
        name = _name(log, arms)
        arms[name] = held.records
        if kept := effective_records(held.records):
            last[name] = kept[-1]
    if not last:
        raise AdaselError("the run logs hold no records; is a run under way that wrote none yet?")
    render_report(
        chosen.out,
        title=", ".join(last),
        verdict=" ".join(_told(name, record) for name, record in last.items()),
        tiles=[_tile(name, _saved_s(record)) for name, record in last.items()],
        sections=run_sections(arms),
    )
    print(
        f"report: {chosen.out}" + (f" ({damaged} damaged lines were left out)" if damaged else "")
    )
    return 0


def _records(log: Path) -> RunRecords:
    """Read a run log; a file of something else is refused, an empty one is not."""
    try:
        held = read_run_log(log)
    except FileNotFoundError as error:
        raise AdaselError(f"there is no file {str(log)!r}") from error
    whole = all(record.keys() >= _READ for record in effective_records(held.records))
    if (held.damaged and not held.records) or not whole:
        raise AdaselError(
            f"{str(log)!r} is no run log: expected one JSON object a line with what "
            "loader.metrics.snapshot() gives"
        )
    return held


def _name(log: Path, taken: Mapping[str, object]) -> str:
    return str(log) if log.stem in taken else log.stem


def _told(name: str, record: Mapping[str, Any]) -> str:
    seen, selected = record["samples_seen_total"], record["samples_selected_total"]
    return f"{name} trained on {selected:,} of {seen:,} samples ({selected / max(seen, 1):.1%})."


def _tile(name: str, saved_s: float) -> Tile:
    digits = 1 if abs(saved_s) < 10 else 0
    return Tile(
        name, f"{abs(saved_s):,.{digits}f} s", f"{'lost' if saved_s < 0 else 'saved'}, estimated"
    )


def _saved_s(record: Mapping[str, Any]) -> float:
    """Estimate the seconds that selection saved, the cost of training linear in samples."""
    spent = record["phase_seconds_total"]
    ratio = record["samples_seen_total"] / max(record["samples_selected_total"], 1)
    return float(spent["train"] * (ratio - 1) - spent["score"] - spent["select"])


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be used: {error.strerror}"
    return str(error) or type(error).__name__
