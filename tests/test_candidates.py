import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from adasel_stream.candidates import Candidates
from adasel_stream.errors import ShardError, SourceError


class Numbers:
    """Numbers from 0 on, as a source that can say where it stands."""

    def __init__(self, count: int = 6, broken_at: int | None = None) -> None:
        self.count = count
        self.broken_at = broken_at
        self.next = 0
        self.resuming = False

    def __iter__(self) -> Iterator[int]:
        """Begin, or go on where a loaded state says."""
        if not self.resuming:
            self.next = 0
        self.resuming = False
        while self.next < self.count:
            if self.next == self.broken_at:
                raise OSError("the network is gone, secret=42")
            self.next += 1
            yield self.next - 1

    def state_dict(self) -> dict[str, Any]:
        """Count what was given out."""
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after it."""
        self.next, self.resuming = state["next"], True


def rest(candidates: Candidates) -> list[Any]:
    """Start a pass and take all that comes."""
    candidates.start()
    taken: list[Any] = []
    while True:
        try:
            taken.append(candidates.next())
        except StopIteration:
            return taken


@pytest.mark.parametrize("cut", range(7))
def test_a_stateful_source_goes_on_by_itself(cut: int) -> None:
    """After any batch, and a second time from the resumed one."""
    first = Candidates(Numbers())
    first.start()
    taken = [first.next() for _ in range(cut)]
    second = Candidates(Numbers())
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    second.start()
    taken += [second.next() for _ in range(min(1, 6 - cut))]
    third = Candidates(Numbers())
    third.load_state_dict(second.state_dict())
    assert taken + rest(third) == list(range(6))
    assert rest(third) == list(range(6))


def test_a_state_without_the_sources_own_is_refused_by_a_source_that_has_one() -> None:
    """The snapshot was taken from another source."""
    with pytest.raises(SourceError, match="no state_dict of Numbers, so it"):
        Candidates(Numbers()).load_state_dict({"taken": 1})


def test_a_source_whose_state_is_not_there_counts_as_stateless() -> None:
    """Some loaders have the methods, and nothing behind them unless they are told."""

    class Hollow(Numbers):
        def state_dict(self) -> dict[str, Any]:
            """Ask for what is not there."""
            state: dict[str, Any] = self.inner.state_dict()  # type: ignore[attr-defined] # so it is
            return state

    candidates = Candidates(Hollow(broken_at=1), replay=True)
    candidates.start()
    candidates.next()
    assert "source" not in candidates.state_dict()
    with pytest.raises(SourceError, match=r"Hollow raised OSError after 1 .* start a new pass"):
        candidates.next()
    other = Candidates(Hollow(3), replay=True)
    other.load_state_dict(candidates.state_dict())
    with pytest.warns(RuntimeWarning, match="Hollow has no state_dict: reading 1 batches again"):
        assert rest(other) == [1, 2]


def test_peeking_takes_nothing() -> None:
    """Neither the position nor the order changes."""
    candidates = Candidates(Numbers())
    candidates.start()
    candidates.next()
    before = candidates.state_dict()
    assert (candidates.peek(), candidates.peek()) == (1, 1)
    assert candidates.state_dict() == before
    assert [candidates.next(), candidates.next()] == [1, 2]


@pytest.mark.parametrize("started", [False, True])
def test_a_source_that_raises_is_named_with_the_place(started: bool) -> None:
    """The cause is attached; its text, which may hold data, is not repeated."""
    candidates = Candidates(Numbers(broken_at=2 if started else 0))
    candidates.start()
    if started:
        assert [candidates.next(), candidates.next()] == [0, 1]
    place = "after 2 candidate" if started else "after 0 candidate"
    with pytest.raises(SourceError, match=f"Numbers raised OSError {place}") as caught:
        candidates.next()
    assert isinstance(caught.value.__cause__, OSError)
    assert "iterate again to go on from there" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_stateful_source_goes_on_after_an_error() -> None:
    """Once the network is back, no batch is repeated and none is lost."""
    source = Numbers(broken_at=3)
    candidates = Candidates(source)
    candidates.start()
    taken = [candidates.next() for _ in range(3)]
    with pytest.raises(SourceError):
        candidates.next()
    source.broken_at = None
    assert taken + rest(candidates) == list(range(6))
    assert rest(candidates) == list(range(6))


def test_a_stateless_source_begins_anew_after_an_error() -> None:
    """The message says so."""

    def broken() -> Iterator[int]:
        yield 0
        raise OSError

    candidates = Candidates(broken())
    candidates.start()
    candidates.next()
    with pytest.raises(SourceError, match=r"generator raised OSError.* again to start a new pass"):
        candidates.next()


def test_a_sources_own_error_keeps_its_type() -> None:
    """A damaged shard is caught as such; the place is added as a note."""

    def damaged() -> Iterator[int]:
        yield 0
        raise ShardError("shard a: it is cut")

    candidates = Candidates(damaged())
    candidates.start()
    candidates.next()
    with pytest.raises(ShardError, match="it is cut") as caught:
        candidates.next()
    assert "after 1 candidate batches" in caught.value.__notes__[0]


def test_a_source_that_cannot_be_opened_is_named() -> None:
    """Raising in `iter` is an error of the source too."""

    class Closed:
        def __iter__(self) -> Iterator[int]:
            raise ValueError("closed")

    with pytest.raises(SourceError, match="source Closed raised ValueError after 0 candidate"):
        Candidates(Closed()).start()


def test_stopping_lets_go_of_the_iterator() -> None:
    """A DataLoader's workers end with their iterator."""

    class Iterating:
        def __init__(self) -> None:
            self.made: list[weakref.ref[Any]] = []

        def __iter__(self) -> Iterator[int]:
            iterator = iter(Numbers())
            self.made.append(weakref.ref(iterator))
            return iterator

    source = Iterating()
    candidates = Candidates(source)
    candidates.start()
    candidates.next()
    candidates.stop()
    gc.collect()
    assert source.made[0]() is None


def test_closing_closes_the_source() -> None:
    """If it can be closed; a list cannot."""

    class Closing(Numbers):
        closed = False

        def close(self) -> None:
            """Note it."""
            self.closed = True

    source = Closing()
    Candidates(source).close()
    Candidates([0]).close()
    assert source.closed


def test_what_cannot_be_iterated_is_refused() -> None:
    """At construction, with its type."""
    source: Any = 3
    with pytest.raises(TypeError, match="source must be an iterable of batches, got int"):
        Candidates(source)


def test_a_used_up_iterator_gives_no_silent_second_pass() -> None:
    """A training loop over nothing would look like one that is done."""
    candidates = Candidates(iter([0, 1]))
    assert rest(candidates) == [0, 1]
    with pytest.raises(
        SourceError, match="list_iterator gives its batches once, and they are used"
    ):
        candidates.start()


def test_a_stateful_iterator_may_begin_again() -> None:
    """It says itself where it stands."""

    class Node(Numbers):
        def __iter__(self) -> "Node":
            self.running = super().__iter__()
            return self

        def __next__(self) -> int:
            return next(self.running)

    candidates = Candidates(Node(3))
    assert rest(candidates) == rest(candidates) == [0, 1, 2]


def test_a_position_that_cannot_be_reached_moves_nothing() -> None:
    """It is checked before the source is asked to go there."""
    source = Numbers()
    candidates = Candidates(source)
    with pytest.raises(SourceError):
        candidates.check({"taken": 2})
    candidates.check({"taken": 2, "source": {"next": 2}})
    assert source.next == 0
