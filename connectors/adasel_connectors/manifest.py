"""A manifest: how many bytes and samples each shard has, and the digest of its content.

With one, a missing, cut or altered shard is always noticed, before any of its samples is
used. Without one a reader can only check the shard's own structure: a flipped bit in an image
stays unseen, and so does a missing shard. A manifest proves nothing against somebody who can
also write the manifest.

The file is JSON: `{"shards": [{"name": ..., "bytes": ..., "sha256": ..., "samples": ...}]}`.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, TypeGuard, cast

from adasel_connectors.damage import DamageError, shown
from adasel_connectors.parquet_file import count_rows
from adasel_connectors.shards import Paths, find_shards, is_below_folder, mapped
from adasel_connectors.tar_samples import count_samples
from adasel_stream.errors import SourceError

__all__ = [
    "Entry",
    "check_count",
    "check_shard",
    "read_manifest",
    "verify_manifest",
    "write_manifest",
]

_LARGEST_MANIFEST_BYTES = 1 << 28
_HASHED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One shard's line in a manifest.

    Attributes:
        name: path below the data set's folder, '/' between parts.
        bytes: size of the file, at least 1.
        sha256: of the whole file, 64 lower-case hexadecimal digits.
        samples: how many samples the shard holds, damaged ones included.
    """

    name: str
    bytes: int
    sha256: str
    samples: int


def write_manifest(paths: Paths, manifest: str | os.PathLike[str] | None = None) -> Path:
    """Describe the tar and Parquet shards in a folder; return the manifest's path.

    Args:
        paths: folder, glob or files, as a source takes them.
        manifest: where to write; `manifest.json` in the shards' folder by default.

    Raises:
        ValueError: no shards are there.
        SourceError: a shard is damaged already.

    >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pq.write_table(pa.table({"x": [1.0, 2.0]}), f"{folder}/a.parquet")
    ...     path = write_manifest(folder)
    ...     print(read_manifest(path)["a.parquet"].samples, verify_manifest(folder, path))
    2 []
    """
    root, found = find_shards(paths, (".tar", ".parquet"))
    entries = [_describe(name, path) for name, path in found.items()]
    target = Path(manifest) if manifest is not None else root / "manifest.json"
    text = json.dumps({"shards": [asdict(entry) for entry in entries]}, indent=1)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    return target


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Read a manifest: its entries by shard name, in the file's order.

    Raises:
        ValueError: the file is missing or is not a manifest.
    """
    where = f"manifest {os.fspath(path)!r}"
    try:
        if os.path.getsize(path) > _LARGEST_MANIFEST_BYTES:
            raise ValueError(f"{where} is larger than {_LARGEST_MANIFEST_BYTES} bytes")
        loaded: Any = json.loads(Path(path).read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read as JSON; write it with write_manifest") from error
    lines = cast("dict[str, Any]", loaded).get("shards") if isinstance(loaded, dict) else None
    if not isinstance(lines, list):
        raise ValueError(f'{where} must look like {{"shards": [...]}}')  # noqa: TRY004  # content
    entries: dict[str, Entry] = {}
    for i, line in enumerate(lines):
        if not _is_entry(line):
            raise ValueError(
                f"{where}: shard {i} must have a name below the folder, bytes, sha256 and samples"
            )
        if line["name"] in entries:
            raise ValueError(f"{where} names shard {shown(line['name'])} twice")
        entries[line["name"]] = Entry(line["name"], line["bytes"], line["sha256"], line["samples"])
    return entries


def verify_manifest(paths: Paths, manifest: str | os.PathLike[str]) -> list[str]:
    """Compare shards with a manifest; return one line for each shard that differs.

    Raises:
        ValueError: the manifest cannot be read.
    """
    root, found = find_shards(paths, (".tar", ".parquet"))
    entries = read_manifest(manifest)
    lines = [f"{shown(name)}: not in the manifest" for name in found if name not in entries]
    for name, entry in entries.items():
        try:
            with mapped(found.get(name, str(root / name))) as view:
                check_shard(view, entry)
        except DamageError as damage:
            lines.append(f"{shown(name)}: {damage.reason}")
    return lines


def check_shard(view: mmap, entry: Entry) -> None:
    """Compare a shard's size and sha256 with its manifest entry.

    Raises:
        DamageError: they differ.
    """
    if len(view) != entry.bytes:
        raise DamageError(
            "wrong_size", f"the manifest says {entry.bytes} bytes, it has {len(view)}"
        )
    if _sha256(view) != entry.sha256:
        raise DamageError("wrong_sha256", "its content differs from the manifest's sha256")


def check_count(samples: int, entry: Entry | None) -> None:
    """Compare the number of samples that were found with a manifest entry, if there is one.

    Raises:
        DamageError: they differ.
    """
    if entry is not None and samples != entry.samples:
        raise DamageError(
            "wrong_count", f"the manifest says {entry.samples} samples, it has {samples}"
        )


def _describe(name: str, path: str) -> Entry:
    try:
        with mapped(path) as view:
            samples = count_rows(path) if name.lower().endswith(".parquet") else count_samples(view)
            return Entry(name, len(view), _sha256(view), samples)
    except DamageError as damage:
        raise SourceError(f"cannot describe shard {shown(name)}: {damage.reason}") from damage


def _sha256(view: mmap) -> str:
    digest = hashlib.sha256()
    with memoryview(view) as whole:
        for start in range(0, len(whole), _HASHED_BYTES):
            digest.update(whole[start : start + _HASHED_BYTES])
    return digest.hexdigest()


def _is_entry(line: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(line, dict):
        return False
    name, size, sha256, samples = (
        cast("dict[str, Any]", line).get(key) for key in ("name", "bytes", "sha256", "samples")
    )
    return (
        isinstance(name, str)
        and is_below_folder(name)
        and type(size) is int
        and size > 0
        and isinstance(sha256, str)
        and re.fullmatch("[0-9a-f]{64}", sha256) is not None
        and type(samples) is int
        and samples >= 0
    )
