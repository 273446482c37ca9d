"""What was read and may be needed again soon, in bounded memory, shared by threads."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar, cast

__all__ = ["ByteCache"]

T = TypeVar("T")


@dataclass(slots=True)
class _Slot(Generic[T]):
    lock: Lock = field(default_factory=Lock)
    made: bool = False
    value: T | None = None
    size: int = 0


class ByteCache(Generic[T]):
    """Values by key, made once however many threads ask; those used last stay.

    >>> cache = ByteCache[str](limit=10)
    >>> [cache.get(1, key, lambda key=key: (key.upper(), 6)) for key in ("a", "b", "b")]
    ['A', 'B', 'B']
    >>> len(cache)
    1
    """

    def __init__(self, limit: int) -> None:
        """Keep up to `limit` bytes; a single larger value stays until the next one comes."""
        self.limit = limit
        self._slots: OrderedDict[tuple[Hashable, Hashable], _Slot[T]] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def __len__(self) -> int:
        """Count the values."""
        return len(self._slots)

    def __reduce__(self) -> tuple[Callable[[int], "ByteCache[T]"], tuple[int]]:
        """Travel to a worker empty."""
        return ByteCache, (self.limit,)

    def get(self, owner: Hashable, name: Hashable, make: Callable[[], tuple[T, int]]) -> T:
        """Give an owner's value; `make` gives it and its size in bytes where it is not there.

        Whatever `make` raises is raised, and the next call tries again.
        """
        key = owner, name
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if not slot.made:
                slot.value, slot.size = make()
                slot.made = True
                self._make_room(key, slot)
            return cast("T", slot.value)

    def forget(self, owner: Hashable) -> None:
        """Drop all values of an owner."""
        with self._lock:
            for key in [key for key in self._slots if key[0] == owner]:
                self._size -= self._slots.pop(key).size

    def _make_room(self, key: tuple[Hashable, Hashable], slot: _Slot[T]) -> None:
        with self._lock:
            if self._slots.get(key) is slot:  # another thread may have pushed it out meanwhile
                self._size += slot.size
            while self._size > self.limit and len(self._slots) > 1:
                _, oldest = self._slots.popitem(last=False)
                self._size -= oldest.size
