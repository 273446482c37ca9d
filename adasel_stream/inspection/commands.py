"""The command `record`: looking inside a record's folder, and upkeep of its files."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from adasel_stream.errors import RecordError
from adasel_stream.inspection.bars import showing
from adasel_stream.inspection.instances import ORDERS, extremes, find
from adasel_stream.inspection.listing import LEGEND, listing, lookups
from adasel_stream.inspection.numbers import numbers
from adasel_stream.inspection.opening import check_record, telling
from adasel_stream.inspection.overview import overview
from adasel_stream.inspection.soundness import advice, check_files
from adasel_stream.inspection.survey import survey
from adasel_stream.inspection.taking_in import take_in
from adasel_stream.inspection.wording import plain, size_words
from adasel_stream.keys import instance_ids
from adasel_stream.record.snapshots.exchange import export_rows
from adasel_stream.record.snapshots.upkeep import compact

__all__ = ["add_record"]


def add_record(commands: Any) -> None:
    """Add the command `record` to those of a parser."""
    record = commands.add_parser(
        "record",
        help="look inside a loss record that is kept in a folder",
        description="Look inside a loss record that is kept in a folder, and look after its files.",
    )
    tasks = record.add_subparsers(title="tasks", required=True, metavar="TASK")
    _add_inspect(tasks)
    _add_top(tasks)
    _add_export(tasks)
    _add_import(tasks)
    _add_verify(tasks)
    _add_compact(tasks)


def _task(tasks: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str) -> Any:
    task = tasks.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    task.add_argument("path", type=Path, metavar="PATH", help="folder of the record")
    task.set_defaults(run=run)
    return task


def _add_inspect(tasks: Any) -> None:
    task = _task(
        tasks, "inspect", _inspect, "tell how full a record is, and what it holds as a whole"
    )
    task.add_argument("--json", action="store_true", help="print numbers for machines")


def _add_top(tasks: Any) -> None:
    task = _task(tasks, "top", _top, "list the hardest or the stalest instances, or given ones")
    task.add_argument("--by", choices=ORDERS, default="loss", help="what puts them in order")
    task.add_argument("--rows", type=_positive, default=20, help="how many")
    task.add_argument("--lowest", action="store_true", help="begin at the other end")
    task.add_argument(
        "--id",
        type=_int64,
        action="append",
        default=[],
        help="look this instance up; may be repeated",
    )
    task.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="STRING",
        help="look the instance of this string id up; may be repeated",
    )


def _add_export(tasks: Any) -> None:
    task = _task(tasks, "export", _export, "write all instances and their losses to one file")
    task.add_argument(
        "--out", type=Path, required=True, help="file to write, ends in .parquet or .csv"
    )


def _add_import(tasks: Any) -> None:
    task = _task(
        tasks, "import", _import, "put a file of losses into a record, made if it is not there"
    )
    task.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to read, ends in .parquet or .csv, with columns id and loss",
    )
    task.add_argument(
        "--capacity",
        type=_positive,
        help="slots; needed only for a new record, one that is there keeps its own or gets more",
    )


def _add_verify(tasks: Any) -> None:
    _task(tasks, "verify", _verify, "check every byte of a record's files")


def _add_compact(tasks: Any) -> None:
    _task(tasks, "compact", _compact, "fold a record's deltas into its base; no trainer may use it")


def _inspect(chosen: argparse.Namespace) -> int:
    with showing("reading") as progress:
        seen = survey(chosen.path, progress)
    now_s = time.time()
    _print(json.dumps(numbers(seen, now_s), indent=1) if chosen.json else overview(seen, now_s))
    return 0


def _top(chosen: argparse.Namespace) -> int:
    wanted = [(str(id_), id_) for id_ in chosen.id]
    wanted += zip(chosen.name, instance_ids(chosen.name).tolist(), strict=True)
    if wanted:
        found = find(chosen.path, np.array([id_ for _, id_ in wanted], np.int64))
        lines = lookups(wanted, found)
    else:
        with showing("reading") as progress:
            first = extremes(
                chosen.path, chosen.by, chosen.rows, lowest=chosen.lowest, progress=progress
            )
        lines = listing(first)
    _print("\n".join([*lines, "", LEGEND]))
    return 0


def _export(chosen: argparse.Namespace) -> int:
    with telling(chosen.path), _refusing(), showing("exporting") as progress:
        check_record(chosen.path)
        try:
            rows = export_rows(chosen.path, chosen.out, progress)
        except OSError as error:
            raise RecordError(f"cannot write {str(chosen.out)!r}: {error.strerror}") from error
    size = size_words(chosen.out.stat().st_size)
    _print(f"wrote {rows:,} instances to {str(chosen.out)!r}, {size}")
    return 0


def _import(chosen: argparse.Namespace) -> int:
    if not chosen.source.is_file():
        raise RecordError(f"there is no file {str(chosen.source)!r} to import")
    with telling(chosen.path), _refusing(), showing("importing") as progress:
        taken = take_in(chosen.path, chosen.source, chosen.capacity, progress)
    _print(
        f"took {taken.rows:,} rows in; the record holds {taken.entries:,} instances in "
        f"{taken.capacity:,} slots"
    )
    if taken.ranks > 1:
        _print(f"it was shared by {taken.ranks:,} ranks, which share it anew when they open it")
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    with showing("verifying") as progress:
        files = check_files(chosen.path, progress)
    for file in files:
        name = repr(str(file.path.relative_to(chosen.path)))
        _print(f"damaged  {name}: {file.reason}" if file.reason else f"sound    {name}")
    damaged = [file for file in files if file.reason]
    if not damaged:
        _print(f"sound: all {len(files):,} files")
        return 0
    _print("\n".join([f"damaged: {len(damaged):,} of {len(files):,} files", *advice(damaged)]))
    return 1


def _compact(chosen: argparse.Namespace) -> int:
    with telling(chosen.path), showing("compacting") as progress:
        check_record(chosen.path)
        done = compact(chosen.path, progress)
    before, after = size_words(done.bytes_before), size_words(done.bytes_after)
    if done.rows_before == done.rows_after:
        _print(f"nothing to fold: {done.rows_after:,} rows in {after}")
    else:
        _print(f"{done.rows_before:,} rows in {before} became {done.rows_after:,} in {after}")
    return 0


@contextlib.contextmanager
def _refusing() -> Generator[None, None, None]:
    """Tell of a wrong argument as the parser does."""
    try:
        yield
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error


def _int64(text: str) -> int:
    number = _whole(text)
    if not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"expected an integer of 64 bits, got {text}")
    return number


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from error


def _print(text: str) -> None:
    try:
        print(plain(text, sys.stdout.encoding), flush=True)
    except BrokenPipeError:
        # whoever reads has seen enough, as `head` does; nothing may be left to write at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
