"""Follow references to what they point at, many at once and from many threads."""

from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from adasel_connectors.counts import Counts
from adasel_connectors.damage import DamageError, shown
from adasel_connectors.open_shards import OpenShards, Rows
from adasel_connectors.references import DIGEST, ID
from adasel_connectors.shards import Shard
from adasel_stream.errors import ShardError

__all__ = ["Fetcher"]

_KINDS = ("changed", "missing", "unknown", "unlisted", "unreadable", "wrong_sha256", "wrong_size")


class Fetcher:
    """Reads values of deferred columns and counts them; a copy in another process starts anew."""

    def __init__(self, counts: Counts) -> None:
        """Count into counters that have `Fetcher.names(...)`."""
        self._counts = counts
        self._open = OpenShards()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["Fetcher"], tuple[Counts]]:
        """Travel to a worker without files and locks."""
        return Fetcher, (self._counts,)

    @staticmethod
    def names(kinds: tuple[str, ...]) -> list[str]:
        """Name the counters of a source with some kinds of damage.

        >>> Fetcher.names(("null",))[:4]
        ['fetched', 'fetched_bytes', 'unfetched', 'unfetched_changed']
        """
        reasons = [f"unfetched_{kind}" for kind in (*_KINDS, *kinds)]
        return ["fetched", "fetched_bytes", "unfetched", *reasons]

    def fetch(
        self,
        name: str,
        references: list[list[int]],
        shards: Mapping[int, Shard],
        open_: Callable[[Shard], Rows],
    ) -> list[Any]:
        """Give the values of n references to one column, in their order.

        Args:
            name: of the column.
            references: rows of numbers; see `adasel_connectors.references`.
            shards: by number.
            open_: opens one of them.

        Returns:
            n values, a `ShardError` for each one that cannot be had.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, reference in enumerate(references):
            groups.setdefault((reference[ID] >> 32, reference[DIGEST]), []).append(i)
        values: list[Any] = [None] * len(references)
        damages: list[DamageError] = []
        size = 0
        for (number, digest), indices in groups.items():
            shard = shards.get(number)
            chosen = [references[i] for i in indices]
            found, read = self._values(name, chosen, shard, digest, open_)
            size += read
            for i, value in zip(indices, found, strict=True):
                values[i] = value
                if isinstance(value, DamageError):
                    damages.append(value)
                    values[i] = _error(shard, references[i][ID], value)
        self._count(len(values), size, damages)
        return values

    def _values(
        self,
        name: str,
        references: list[list[int]],
        shard: Shard | None,
        digest: int,
        open_: Callable[[Shard], Rows],
    ) -> tuple[list[Any], int]:
        if shard is None:
            unknown = DamageError("unknown", "no shard of this source has its number")
            return [unknown] * len(references), 0
        try:
            return self._open.get(shard, digest, open_).values(name, references)
        except DamageError as damage:
            return [damage] * len(references), 0
        except Exception as error:  # one broken shard must not stop a pool of threads
            broken = DamageError("unreadable", f"reading it failed: {type(error).__name__}")
            broken.__cause__ = error
            return [broken] * len(references), 0

    def _count(self, values: int, size: int, damages: list[DamageError]) -> None:
        found = {"fetched": values - len(damages), "fetched_bytes": size}
        if damages:
            kinds = Counter(f"unfetched_{damage.kind}" for damage in damages)
            found |= {"unfetched": len(damages), **kinds}
        with self._lock:  # adding to one counter from two threads could lose counts
            self._counts.add_all(found)


def _error(shard: Shard | None, id_: int, damage: DamageError) -> ShardError:
    where = "" if shard is None else f"shard {shown(shard.name)}: "
    error = ShardError(f"{where}sample {id_ & 0xFFFFFFFF}: {damage.reason}")
    error.__cause__ = damage
    return error
