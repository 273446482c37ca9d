"""Flights as shards on the disk, written once: a folder that is whole, or is not there."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

from adasel_connectors.manifest import read_manifest, write_manifest
from adasel_connectors.parquet import ParquetSource
from adasel_connectors.tar import TarSource
from adasel_stream.demo.flights import CODES, FLAGS, LABEL, NUMBERS, Flights, read
from adasel_stream.demo.settings import Format
from adasel_stream.demo.ustar import write_rows

__all__ = ["COLUMNS", "Prepared", "open_shards", "prepare"]

COLUMNS = (*CODES, *NUMBERS, *FLAGS, LABEL)
"""Columns of the Parquet shards; the members of the tar shards hold the same, in this order."""

_FORMAT = 1
_SHARD_ROWS = 32_768
_FACTS = "flights.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder of shards.

    Attributes:
        folder: holds `parquet`, `tar` and `flights.json`.
        rows: samples in the stream.
        sizes: how many values each code can take, in the order of `CODES`.
        facts: what `flights.json` says of the data and its source.
        written: whether it was written just now.
    """

    folder: Path
    rows: int
    sizes: tuple[int, ...]
    facts: dict[str, Any]
    written: bool

    def shards(self, kind: Format) -> Path:
        """Give the folder of one kind of shard; its manifest lies in it."""
        return self.folder / kind


def prepare(cache: Path, rows: int | None, tell: Callable[[str], None]) -> Prepared:
    """Find the shards in the cache, or write them.

    Args:
        cache: folder for all prepared data; made if it does not exist.
        rows: how many flights, the first of the year; None for all.
        tell: called with a sentence for each thing that takes a while.

    Raises:
        SourceError: the data is not installed.
        OSError: the folder cannot be written.
    """
    folder = cache / ("flights" if rows is None else f"flights-{rows}")
    facts = _whole(folder)
    if facts is None:
        if folder.exists():
            tell(f"{folder} is incomplete; it is written again")
        _write(folder, rows, tell)
    found = facts or _whole(folder)
    assert found is not None, "it was written just now"
    sizes = [len(found["vocabulary"][name]) for name in ("carrier", "origin", "dest")]
    return Prepared(folder, int(found["rows"]), (*sizes, 24, 7, 12), found, facts is None)


def open_shards(folder: Path, kind: Format, batch_size: int) -> ParquetSource | TarSource:
    """Open the stream from its beginning, every shard compared with the manifest.

    Args:
        folder: what `Prepared.shards` gives.
        kind: of the shards in it.
        batch_size: samples of a batch, at least 1.

    Raises:
        ValueError: there are no shards, or no manifest.
    """
    manifest = folder / "manifest.json"
    if kind == "tar":
        return TarSource(folder, extensions=("npy",), batch_size=batch_size, manifest=manifest)
    return ParquetSource(folder, columns=COLUMNS, batch_size=batch_size, manifest=manifest)


def _whole(folder: Path) -> dict[str, Any] | None:
    """Give the folder's facts if all of its shards are there in full, else None."""
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text("utf-8"))
        for kind in ("parquet", "tar"):
            for entry in read_manifest(folder / kind / "manifest.json").values():
                if (folder / kind / entry.name).stat().st_size != entry.bytes:
                    return None
    except (OSError, ValueError):
        return None
    return facts if facts.get("format") == _FORMAT else None


def _write(folder: Path, rows: int | None, tell: Callable[[str], None]) -> None:
    tell("reading a year of flights and joining the weather of their hour")
    flights = read()
    draft = folder.with_name(f".{folder.name}.tmp")
    for leftover in (draft, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    for kind in ("parquet", "tar"):
        (draft / kind).mkdir(parents=True)
    _write_shards(draft, flights, rows, tell)
    tell("writing their manifests")
    for kind in ("parquet", "tar"):
        write_manifest(draft / kind)
    facts = _facts(flights, rows)
    (draft / _FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(draft, folder)


def _write_shards(
    draft: Path, flights: Flights, rows: int | None, tell: Callable[[str], None]
) -> None:
    table = flights.table.select(list(COLUMNS)).slice(0, rows)
    starts = range(0, table.num_rows, _SHARD_ROWS)
    for number, start in enumerate(starts):
        tell(f"writing shard {number + 1} of {len(starts)}, as Parquet and as tar")
        part = table.slice(start, _SHARD_ROWS)
        name = f"flights-{number:05d}"
        pq.write_table(part, draft / "parquet" / f"{name}.parquet")
        columns = [part[column].to_numpy() for column in COLUMNS]
        write_rows(draft / "tar" / f"{name}.tar", np.stack(columns, axis=1, dtype=np.float32))


def _facts(flights: Flights, rows: int | None) -> dict[str, Any]:
    table = flights.table.slice(0, rows)
    return {
        "format": _FORMAT,
        "source": flights.source,
        "flights_in_source": flights.read,
        "dropped": {"never_arrived": flights.unlabelled},
        "rows": table.num_rows,
        "columns": list(COLUMNS),
        "vocabulary": flights.vocabulary,
        "without_weather": flights.without_weather,
    }
