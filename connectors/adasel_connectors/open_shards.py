"""Shards held open while single rows of them are fetched, shared by threads."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from adasel_connectors.damage import DamageError
from adasel_connectors.shards import Shard, ShardFile, Stamp, stamp_of

__all__ = ["OpenShards", "Rows"]

_HELD_OPEN = 32


class Rows(Protocol):
    """A shard of which single rows are read.

    Attributes:
        file: the shard.
        digest: of its content, as references carry it.
    """

    file: ShardFile
    digest: int

    def values(self, name: str, references: list[list[int]]) -> tuple[list[Any], int]:
        """Read a deferred column's values of n references; threads may do so at once.

        Returns:
            n values, a `DamageError` in the place of one that cannot be had; and the bytes read.

        Raises:
            DamageError: none of them can be had.
        """
        ...

    def forget(self) -> None:
        """Drop what is cached of it, which would keep the file open."""
        ...


@dataclass(slots=True)
class _Slot:
    lock: Lock = field(default_factory=Lock)
    stamp: Stamp | None = None
    rows: Rows | None = None
    damage: tuple[str, str] | None = None  # kind and reason; an exception would hold its frames

    def forget(self) -> None:
        if self.rows is not None:
            self.rows.forget()
        self.rows = self.damage = None


class OpenShards:
    """The shards that were used last, up to 32.

    A shard that leaves is closed once no thread uses it any more.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._slots: OrderedDict[int, _Slot] = OrderedDict()
        self._lock = Lock()

    def get(self, shard: Shard, digest: int, open_: Callable[[Shard], Rows]) -> Rows:
        """Give the open shard whose content has a digest.

        What is open goes on being used after its file was replaced or removed, as long as
        nobody writes to it. Damage is remembered until the file changes.

        Args:
            shard: the shard.
            digest: that it had when it was referred to.
            open_: opens it; raises `DamageError`.

        Raises:
            DamageError: it cannot be opened, or has another content now.
        """
        slot = self._slot(shard.number)
        with slot.lock:
            rows = slot.rows
            if rows is not None and rows.digest == digest and rows.file.is_as_it_was():
                return rows
            stamp = stamp_of(shard.path)
            if (rows is None and slot.damage is None) or stamp != slot.stamp:
                slot.forget()
                slot.stamp = stamp
                try:
                    slot.rows = open_(shard)
                except DamageError as damage:
                    slot.damage = damage.kind, damage.reason
            if slot.damage is not None:
                raise DamageError(*slot.damage)
            if slot.rows is None or slot.rows.digest != digest:
                raise DamageError("changed", "it has changed since its candidates were read")
            return slot.rows

    def _slot(self, number: int) -> _Slot:
        with self._lock:
            slot = self._slots.setdefault(number, _Slot())
            self._slots.move_to_end(number)
            if len(self._slots) > _HELD_OPEN:
                _, oldest = self._slots.popitem(last=False)
                if oldest.rows is not None:
                    oldest.rows.forget()
            return slot
