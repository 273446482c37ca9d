"""Where the snapshots of a record lie: one folder for each rank below the record's own.

    record/
      rank-00000-of-00002/    owner.lock  manifest.json  base-000000000009.parquet  ...
      rank-00001-of-00002/    ...

Each rank owns a contiguous range of the 1,024 virtual shards.
"""

import os
import re
from pathlib import Path
from typing import Final

from adasel_stream.arguments import whole
from adasel_stream.record.snapshots.columns import SHARDS

__all__ = [
    "MANIFEST_NAME",
    "all_rank_folders",
    "find_folders",
    "rank_folder",
    "shard_range",
    "world_size_of",
]

MANIFEST_NAME: Final = "manifest.json"
_RANK_FOLDER: Final = re.compile(r"rank-(\d{5})-of-(\d{5})")


def rank_folder(path: str | os.PathLike[str], rank: int, world_size: int) -> Path:
    """Name the folder of one rank.

    Args:
        path: the record's folder.
        rank: in [0, world_size).
        world_size: number of ranks, in [1, 1024].

    Raises:
        TypeError: if rank or world_size is not an integer.
        ValueError: if rank or world_size is out of its range.

    >>> rank_folder("record", 0, 2).name
    'rank-00000-of-00002'
    """
    whole("rank", rank, 0, whole("world_size", world_size, 1, SHARDS) - 1)
    return Path(path) / f"rank-{rank:05d}-of-{world_size:05d}"


def shard_range(rank: int, world_size: int) -> range:
    """Return the virtual shards that a rank owns.

    >>> [shard_range(rank, 3) for rank in range(3)]
    [range(0, 341), range(341, 682), range(682, 1024)]
    """
    return range(rank * SHARDS // world_size, (rank + 1) * SHARDS // world_size)


def all_rank_folders(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of ranks below a record's folder, by name, snapshots or none in them."""
    here = Path(path)
    names = sorted(os.listdir(here)) if here.is_dir() else []
    return [here / name for name in names if _RANK_FOLDER.fullmatch(name)]


def find_folders(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of ranks that have a manifest, by name.

    A folder of one rank may be given as well. Several numbers of ranks are there at once for as
    long as a record is being split anew.
    """
    here = Path(path)
    if (here / MANIFEST_NAME).exists():
        return [here]
    return [folder for folder in all_rank_folders(here) if (folder / MANIFEST_NAME).exists()]


def world_size_of(folder: Path) -> int:
    """Return the number of ranks that a folder's name says, 0 for any other name.

    >>> world_size_of(Path("record/rank-00000-of-00002"))
    2
    """
    match = _RANK_FOLDER.fullmatch(folder.name)
    return int(match[2]) if match else 0
