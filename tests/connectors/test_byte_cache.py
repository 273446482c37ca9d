"""ByteCache makes each value once, and keeps what fits."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from adasel_connectors.byte_cache import ByteCache


def test_many_threads_that_ask_at_once_share_one_making() -> None:
    """A value is made by one thread; the others wait for it."""
    cache = ByteCache[int](100)
    together = Barrier(8)
    made: list[int] = []

    def make() -> tuple[int, int]:
        made.append(1)
        return 7, 1

    def ask(_: int) -> int:
        together.wait()
        return cache.get("owner", "name", make)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [7] * 8
    assert made == [1]


def test_what_was_used_last_stays() -> None:
    """Beyond the limit the value that was not asked for longest goes first."""
    cache = ByteCache[str](10)
    made: list[str] = []

    def ask(name: str) -> None:
        def make() -> tuple[str, int]:
            made.append(name)
            return "value", 5

        cache.get("owner", name, make)

    for name in ("a", "b", "a", "c", "a", "c", "b"):
        ask(name)
    assert made == ["a", "b", "c", "b"]


def test_a_failure_is_raised_and_tried_again() -> None:
    """What could not be made once can be made later."""
    cache = ByteCache[int](10)

    def fail() -> tuple[int, int]:
        raise OSError("not now")

    with pytest.raises(OSError, match="not now"):
        cache.get("owner", "name", fail)
    assert cache.get("owner", "name", lambda: (3, 1)) == 3


def test_an_owner_is_forgotten_alone() -> None:
    """Its values go, and the room they took; those of others stay."""
    cache = ByteCache[int](10)
    for owner in ("one", "other"):
        cache.get(owner, "name", lambda: (1, 5))
    cache.forget("one")
    assert len(cache) == 1
    cache.get("third", "name", lambda: (2, 5))
    assert len(cache) == 2
    assert cache.get("other", "name", lambda: (9, 5)) == 1
