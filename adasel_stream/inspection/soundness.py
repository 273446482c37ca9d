"""Every file of a record, sound or not, and what damage means to its trainers."""

from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap
from typing import Final, NamedTuple

from adasel_stream.errors import RecordError
from adasel_stream.inspection.opening import check_folder, lost_manifests
from adasel_stream.record.snapshots.files import read_manifest
from adasel_stream.record.snapshots.layout import MANIFEST_NAME, find_folders
from adasel_stream.record.snapshots.upkeep import Progress, unheard, verify

__all__ = ["Checked", "advice", "check_files"]

_ADVICE: Final = {
    MANIFEST_NAME: "No trainer opens a record with a damaged manifest: put it back from a copy.",
    "base": "No trainer opens a record with a damaged base: put it back from a copy, or pass "
    "salvage=True to LossRecord.open to go on with what can be read of it.",
    "delta": "A trainer opens the record without a damaged delta and those after it; what they "
    "held is unknown then. To keep it, put the file back from a copy first.",
    "pending": "A trainer opens the record without the predictions that wait for labels.",
}


class Checked(NamedTuple):
    """A file of a record, and why it cannot be used; empty if it is sound."""

    path: Path
    reason: str


def check_files(path: Path, progress: Progress = unheard) -> list[Checked]:
    """Check every byte of a record's files; it may be in use.

    Files that its owner replaces meanwhile are left out.

    Args:
        path: the record's folder.
        progress: told of rows read.

    Raises:
        RecordError: if there is no record, or a newer release wrote it.
    """
    check_folder(path)
    lost = lost_manifests(path)
    damaged = {file: "it is missing" for file in lost}
    before = _named(path)
    if before or not lost:
        for finding in verify(path, progress):
            damaged[finding.path] = finding.reason.partition(" is damaged: ")[2] or finding.reason
    return sorted(
        Checked(file, damaged.get(file, "")) for file in (before & _named(path)) | damaged.keys()
    )


def advice(damaged: Iterable[Checked]) -> list[str]:
    """Tell in lines what damage means and what to do, once for each kind of file."""
    kinds = {file.path.name.partition("-")[0] for file in damaged}
    told = [sentence for kind, sentence in _ADVICE.items() if kind in kinds]
    return [line for sentence in told for line in wrap(sentence, 100)]


def _named(path: Path) -> set[Path]:
    """Return the manifests of a record and the files that they name."""
    named: set[Path] = set()
    for folder in find_folders(path):
        named.add(folder / MANIFEST_NAME)
        try:
            manifest = read_manifest(folder)
        except (FileNotFoundError, RecordError):
            continue  # whether it matters is for `verify` to say
        named |= {folder / file.name for file in manifest.files}
    return named
