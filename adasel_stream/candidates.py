"""The wrapped source: candidate batches in order, and where to go on after a restart."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from adasel_stream.errors import SourceError
from adasel_stream.types import Batch, Stateful

__all__ = ["Candidates"]


class Candidates:
    """Candidate batches of a source, one by one, with a position that can be restored.

    A source with `state_dict` and `load_state_dict` continues by itself. Any other is read
    again from its start, as many batches as had been taken; that is right only if it gives the
    same batches in the same order, so it must be allowed.

    Args:
        source: any iterable of batches.
        replay: whether a source without state may be read again on resume.
    """

    def __init__(self, source: Iterable[Batch], *, replay: bool = False) -> None:
        self._source = source
        self._replay = replay
        self._iterator: Iterator[Batch] | None = None
        self._taken = 0
        self._skip = 0
        self._held: tuple[Batch, dict[str, Any]] | None = None

    def start(self) -> None:
        """Begin a pass; the first after `load_state_dict` continues the one it describes."""
        if self._skip == 0:
            self._taken = 0
        self._held = None
        try:
            self._iterator = iter(self._source)
        except Exception as error:
            raise self._failed(error) from error
        if self._skip:
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
        """Look at the next candidate batch without taking it."""
        if self._held is None:
            before = self.state_dict()
            self._held = (self._pull(), before)
        return self._held[0]

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last batch taken."""
        if self._held is not None:
            return self._held[1]
        state: dict[str, Any] = {"taken": self._taken}
        if isinstance(self._source, Stateful):
            state["source"] = self._source.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that `state` describes, at the next `start`.

        Raises:
            SourceError: the source has no state and may not be read again.
        """
        self._held = None
        self._taken = int(state["taken"])
        if isinstance(self._source, Stateful):
            if "source" not in state:
                raise SourceError(
                    "the snapshot was taken from a source without state_dict, this one has it; "
                    "resume with the source that the snapshot was taken from"
                )
            self._source.load_state_dict(state["source"])
            return
        if self._taken and not self._replay:
            raise SourceError(
                f"{type(self._source).__name__} has no state_dict, so it cannot continue after "
                f"batch {self._taken}; wrap a source that has one (ParquetSource, TarSource, "
                "torchdata's StatefulDataLoader), or pass replay=True if it always gives the same "
                "batches in the same order"
            )
        self._skip = self._taken

    def close(self) -> None:
        """Drop the iterator and close the source, if it can be closed."""
        self._iterator, self._held = None, None
        close = getattr(self._source, "close", None)
        if callable(close):
            close()

    def _read_again(self) -> None:
        warnings.warn(
            f"{type(self._source).__name__} has no state_dict: reading {self._skip} batches again "
            "to find the place; the run continues exactly only if they come in the same order",
            RuntimeWarning,
            stacklevel=4,
        )
        skip, self._skip = self._skip, 0
        for index in range(skip):
            try:
                self._pull()
            except StopIteration:
                raise SourceError(
                    f"the source ended after {index} batches, the snapshot was taken after {skip}; "
                    "it is not the same stream"
                ) from None

    def _pull(self) -> Batch:
        assert self._iterator is not None, "start comes first"
        try:
            return next(self._iterator)
        except StopIteration:
            raise
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> SourceError:
        return SourceError(
            f"source {type(self._source).__name__} raised {type(error).__name__} at candidate "
            f"batch {self._taken}; rows selected so far are kept, iterate again to go on"
        )
