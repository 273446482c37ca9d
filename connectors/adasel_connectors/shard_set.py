"""The shards of a data set, together with what a manifest says about them."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from adasel_connectors.damage import DamageError
from adasel_connectors.manifest import Entry, read_manifest
from adasel_connectors.shards import Paths, Shard, find_shards

__all__ = ["ShardSet"]


@dataclass(frozen=True)
class ShardSet:
    """The shards of a data set and what a manifest says about them.

    Attributes:
        root: folder that names are relative to.
        found: paths by name, in reading order.
        entries: the manifest, or None.
    """

    root: Path
    found: dict[str, str]
    entries: dict[str, Entry] | None

    @classmethod
    def find(
        cls, paths: Paths, suffixes: tuple[str, ...], manifest: str | PathLike[str] | None
    ) -> "ShardSet":
        """List the shards; with a manifest of a folder, also those that should be there.

        Raises:
            ValueError: there are no shards, or the manifest cannot be read.
        """
        root, found = find_shards(paths, suffixes)
        if manifest is None:
            return cls(root, found, None)
        entries = read_manifest(manifest)
        if isinstance(paths, str | PathLike) and Path(paths).is_dir():
            listed = [name for name in entries if name.lower().endswith(suffixes)]
            expected = {name: found.pop(name, str(root / name)) for name in listed}
            found = expected | found
        return cls(root, found, entries)

    def path_of(self, name: str) -> str:
        """Say where a shard lies, or would lie."""
        return self.found.get(name) or str(self.root / name)

    def entry(self, shard: Shard) -> Entry | None:
        """Give a shard's line of the manifest; None where there is no manifest.

        Raises:
            DamageError: the manifest does not name it.
        """
        if self.entries is None:
            return None
        if shard.name not in self.entries:
            raise DamageError("unlisted", "the manifest does not name it")
        return self.entries[shard.name]
