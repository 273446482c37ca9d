r"""What a folder of snapshots holds: one JSON file, replaced last, that names all others.

The file has exactly one form, so that every changed byte of it is noticed: keys in order, one
space of indent, and `sha256` over the rest in that form. It proves nothing against somebody who
can write the folder. In every format version, `format_version` and `sha256` are as here.

>>> manifest = Manifest(generation=0, layout=0, rank=0, world_size=1, created_s=0.0,
...     capacity=16, seed=0, decay=0.9, tick=1, position={"cursors": {}}, files=())
>>> decode(encode(manifest), "example") == manifest
True
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeAlias, get_type_hints

from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.record.state import read_cursors
from adasel_stream.record.ticks import Ticks

__all__ = [
    "FORMAT_VERSION",
    "LARGEST_MANIFEST_BYTES",
    "Cursors",
    "FileEntry",
    "Manifest",
    "decode",
    "encode",
    "last_tick",
]

FORMAT_VERSION: Final = 1
"""The newest format version that this release reads, and the one that it writes."""

LARGEST_MANIFEST_BYTES: Final = 64 * 2**20
"""Longest manifest that is read; a cursor takes some 60 bytes of it."""

Cursors: TypeAlias = dict[str, tuple[int, int]]
"""For each serving writer the sequence of a segment and the rows of it that were applied."""

_CONTAINERS: Final[Mapping[str, type]] = {"position": dict, "files": list}
_NAME: Final = re.compile(r"(base|delta|pending)-[0-9]{12}\.parquet")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One Parquet file of a snapshot.

    Attributes:
        name: file name in the manifest's folder.
        kind: `base`, all rows; `delta`, rows changed since the files before it; `pending`,
            predictions that wait for labels.
        rows: number of rows.
        bytes: size of the file.
        sha256: of the whole file, 64 lower-case hexadecimal digits.
        since_tick: no row is older, at least 1.
        until_tick: no row is younger.
    """

    name: str
    kind: str
    rows: int
    bytes: int
    sha256: str
    since_tick: int
    until_tick: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot of one record.

    Attributes:
        generation: counts the snapshots of the folder; 0 says that there is none yet.
        layout: counts how often the record was split among another number of ranks.
        rank: of the owner, in [0, world_size).
        world_size: number of ranks that share the record.
        created_s: seconds since 1970.
        capacity: slots of the record.
        seed: of the record.
        decay: of the record.
        tick: when the snapshot began, at least 1; the next delta starts there.
        position: what the record's own `position` gave: its counts, time and cursors.
        files: a base, its deltas in order, at most one file of pending predictions.
    """

    generation: int
    layout: int
    rank: int
    world_size: int
    created_s: float
    capacity: int
    seed: int
    decay: float
    tick: int
    position: dict[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def cursors(self) -> Cursors:
        """How far the segments of each serving writer are in the snapshot."""
        return read_cursors(self.position)

    @property
    def rows(self) -> tuple[FileEntry, ...]:
        """The files that hold rows of the record, oldest first."""
        return tuple(file for file in self.files if file.kind != "pending")

    @property
    def pending(self) -> FileEntry | None:
        """The file of pending predictions, if there is one."""
        return next((file for file in self.files if file.kind == "pending"), None)


def encode(manifest: Manifest) -> bytes:
    """Write a manifest in its one form."""
    return _sealed({"format_version": FORMAT_VERSION} | asdict(manifest))


def decode(content: bytes, name: str) -> Manifest:
    """Read what `encode` wrote.

    Args:
        content: of the file.
        name: what errors call it.

    Raises:
        DamagedSnapshotError: if a byte has changed or the content makes no sense.
        RecordError: if a newer release wrote it.
    """
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or _sealed(document) != content:
            raise DamagedSnapshotError(f"{name} is damaged: its checksum does not hold")
    except (ValueError, RecursionError) as error:
        raise DamagedSnapshotError(f"{name} is damaged: it is no JSON of this form") from error
    version = document.pop("format_version", None)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise RecordError(
            f"{name} has format version {version}, this release reads up to {FORMAT_VERSION}: "
            "use the release that wrote it, or a newer one; nothing was changed"
        )
    del document["sha256"]
    if version != FORMAT_VERSION:
        raise DamagedSnapshotError(f"{name} is damaged: it has no format version")
    try:
        return _manifest_of(document)
    except (TypeError, ValueError, KeyError) as error:
        raise DamagedSnapshotError(f"{name} is damaged: {error}") from error


def _sealed(document: Mapping[str, Any]) -> bytes:
    """Put a document into its one form, with the digest of the rest."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    digest = hashlib.sha256(_form(rest)).hexdigest()
    return _form(rest | {"sha256": digest})


def _form(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _manifest_of(document: dict[str, Any]) -> Manifest:
    _check_types(Manifest, document, _CONTAINERS)
    files = tuple(map(_file_of, document["files"]))
    kinds = [file.kind for file in files]
    rows = [kind for kind in kinds if kind != "pending"]
    if rows[:1] not in ([], ["base"]) or "base" in rows[1:] or kinds.count("pending") > 1:
        raise ValueError("its files are not a base and deltas")
    for name in ("generation", "layout", "rank", "seed"):
        _in_range(name, document[name], 0)
    for name in ("world_size", "capacity", "tick"):
        _in_range(name, document[name], 1)
    if not (math.isfinite(document["created_s"]) and 0 <= document["decay"] < 1):
        raise ValueError("its time or its decay is out of range")
    whole: dict[str, Any] = {**document, "files": files}
    return Manifest(**whole)


def _file_of(line: Any) -> FileEntry:
    if not isinstance(line, dict):
        raise TypeError("a file is no object")
    _check_types(FileEntry, line, {})
    file = FileEntry(**line)
    if not _NAME.fullmatch(file.name) or not file.name.startswith(f"{file.kind}-"):
        raise ValueError("a file has a name that no snapshot gives")
    if not _DIGEST.fullmatch(file.sha256):
        raise ValueError("a file has no sha256")
    for name, low in (("rows", 0), ("bytes", 1), ("since_tick", 1), ("until_tick", 1)):
        _in_range(name, getattr(file, name), low)
    return file


def _check_types(kind: type, document: dict[str, Any], containers: Mapping[str, type]) -> None:
    """Check that there is each field of a dataclass and nothing else, each of its type."""
    hints = get_type_hints(kind)
    if document.keys() != {field.name for field in fields(kind)}:
        raise KeyError("it has other fields than it should")
    for name, value in document.items():
        if type(value) is not containers.get(name, hints[name]):
            raise TypeError(f"its {name} is of another type")


def _in_range(name: str, value: int, low: int) -> None:
    if not low <= value <= (2**64 - 1 if name == "seed" else _LARGEST):
        raise ValueError(f"its {name} is out of range")


def last_tick(manifest: Manifest) -> int:
    """Return the record's time when it was saved, the tick from which ages are counted.

    Raises:
        RecordError: if the manifest has no time.
    """
    ticks = Ticks(lambda: 0.0)
    if manifest.generation:  # else nothing was saved yet
        ticks.load_state_dict(manifest.position.get("ticks", {}))
    return ticks.last
