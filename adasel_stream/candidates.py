"""The wrapped source: candidate batches in order, and where to go on after a restart."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from adasel_stream.errors import SourceError
from adasel_stream.types import Batch, Stateful

__all__ = ["Candidates"]

_T = TypeVar("_T")
_END: Final = object()


class Candidates:
    """Candidate batches of a source, one by one, with a position that can be restored.

    A source with `state_dict` and `load_state_dict` continues by itself. Any other is read
    again from its start, as many batches as had been taken; that is right only if it gives the
    same batches in the same order, so it must be allowed.

    Args:
        source: any iterable of batches.
        replay: whether a source without state may be read again on resume.

    Raises:
        TypeError: the source cannot be iterated over.

    >>> candidates = Candidates([["a"], ["b"]])
    >>> candidates.start()
    >>> candidates.next(), candidates.state_dict()
    (['a'], {'taken': 1})
    """

    def __init__(self, source: Iterable[Batch], *, replay: bool = False) -> None:
        if not isinstance(source, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise TypeError(f"source must be an iterable of batches, got {type(source).__name__}")
        self._source = source
        self._replay = replay
        self._iterator: Iterator[Batch] | None = None
        self._taken = 0
        self._goes_on = False
        self._held: tuple[Batch, dict[str, Any]] | None = None

    def start(self) -> None:
        """Begin a pass, or go on with the one that was loaded or that the source broke off.

        Raises:
            SourceError: the source raised, or ended before the place to go on from.
        """
        goes_on, self._goes_on = self._goes_on, False
        if not goes_on:
            self._taken = 0
        self.stop()
        self._iterator = self._asking(lambda: iter(self._source))
        if goes_on and not isinstance(self._source, Stateful):
            self._read_again()

    def next(self) -> Batch:
        """Take the next candidate batch.

        Raises:
            StopIteration: the pass is over.
            SourceError: the source raised; the cause is attached.
        """
        if self._held is not None:
            batch, self._held = self._held[0], None
        else:
            batch = self._pull()
        self._taken += 1
        return batch

    def peek(self) -> Batch:
        """Look at the next candidate batch without taking it; raises as `next` does."""
        if self._held is None:
            before = self.state_dict()
            self._held = (self._pull(), before)
        return self._held[0]

    def stop(self) -> None:
        """Let go of the source's iterator: the pass is over or given up."""
        self._iterator, self._held = None, None

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last batch taken."""
        if self._held is not None:
            return self._held[1]
        state: dict[str, Any] = {"taken": self._taken}
        if isinstance(self._source, Stateful):
            state["source"] = self._source.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that `state` describes, at the next `start`.

        Raises:
            SourceError: the source has no state and may not be read again.
        """
        taken = int(state["taken"])
        if isinstance(self._source, Stateful):
            if "source" not in state:
                raise SourceError(
                    "the snapshot was taken from a source without state_dict, this one has it; "
                    "resume with the source that the snapshot was taken from"
                )
            self._source.load_state_dict(state["source"])
        elif taken and not self._replay:
            raise SourceError(
                f"{type(self._source).__name__} has no state_dict, so it cannot continue after "
                f"batch {taken}; wrap a source that has one (ParquetSource, TarSource, "
                "torchdata's StatefulDataLoader), or pass replay=True if it always gives the same "
                "batches in the same order"
            )
        self.stop()
        self._taken, self._goes_on = taken, True

    def close(self) -> None:
        """Let go of the source, and close it if it can be closed."""
        self.stop()
        close = getattr(self._source, "close", None)
        if callable(close):
            close()

    def _read_again(self) -> None:
        if self._taken:
            warnings.warn(
                f"{type(self._source).__name__} has no state_dict: reading {self._taken} batches "
                "again to find the place; the run continues exactly only if they come in the same "
                "order",
                RuntimeWarning,
                stacklevel=4,
            )
        for index in range(self._taken):
            try:
                self._pull()
            except StopIteration:
                raise SourceError(
                    f"the source ended after {index} batches, the snapshot was taken after "
                    f"{self._taken}; it is not the same stream"
                ) from None

    def _pull(self) -> Batch:
        iterator = self._iterator
        assert iterator is not None, "start comes first"
        batch = self._asking(lambda: next(iterator, _END))
        if batch is _END:
            raise StopIteration
        return batch

    def _asking(self, ask: Callable[[], _T]) -> _T:
        """Ask the source for something, and say where it failed if it does."""
        try:
            return ask()
        except Exception as error:
            if isinstance(self._source, Stateful):
                # a new pass would repeat what was trained on
                self._source.load_state_dict(self._source.state_dict())
                self._goes_on = True
            place = f"after {self._taken} candidate batches of this pass"
            then = "go on from there" if self._goes_on else "start a new pass"
            advice = f"rows selected so far are kept; iterate again to {then}"
            if isinstance(error, SourceError):
                error.add_note(f"It happened {place}; {advice}.")
                raise
            name = type(self._source).__name__
            raise SourceError(
                f"source {name} raised {type(error).__name__} {place}; {advice}"
            ) from error
