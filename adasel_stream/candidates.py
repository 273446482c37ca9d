"""The wrapped source: candidate batches in order, and where to go on after a restart."""

import logging
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.errors import BatchError, SourceError
from adasel_stream.types import Batch, Stateful

__all__ = ["Candidates"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_END: Final = object()


class Candidates:
    """Candidate batches of a source, one by one, with a position that can be restored.

    A source with `state_dict` and `load_state_dict` continues by itself. Any other is read
    again from its start, as many batches as had been taken; that is right only if it gives the
    same batches in the same order, so it must be allowed. A seeded shuffle of a DataLoader goes on
    from pass to pass, so the state of its generator is kept along.

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
        if not isinstance(source, Iterable):
            hint = "; call it, and pass what it gives" if callable(source) else ""
            raise TypeError(
                f"source must be an iterable of batches, got {type(source).__name__}{hint}"
            )
        self._source = source
        self._replay = replay
        self._iterator: Iterator[Batch] | None = None
        self._taken = 0
        self._goes_on = False
        self._told = False
        self._again = 0
        self._ended = False
        self._seal: int | None = None
        self._broken_at: dict[str, Any] | None = None
        self._held: tuple[Batch, dict[str, Any]] | None = None
        self._stopped_at: dict[str, Any] | None = None
        self._shuffle: list[Tensor] | None = None

    def start(self) -> None:
        """Begin a pass, or go on with the one that was loaded or that the source broke off.

        Raises:
            SourceError: the source raised, is used up, or ended before the place to go on from.
        """
        if self._ended and isinstance(self._source, Iterator) and self._position() is None:
            raise SourceError(
                f"{type(self._source).__name__} gives its batches once, and they are used up; wrap "
                "something that can be iterated again, or make a new loader"
            )
        if self._broken_at is not None and isinstance(self._source, Stateful):
            # a new pass would repeat what was trained on
            self._source.load_state_dict(self._broken_at)
        self._broken_at = None
        goes_on, self._goes_on = self._goes_on, False
        if not goes_on:
            self._taken = 0
        self.stop()
        self._stopped_at = None
        if goes_on and self._shuffle is not None:
            self._set_shuffle(self._shuffle)
        self._shuffle = self._shuffle_state()
        # a DataLoader draws from torch's generator as it begins: a pass that goes on has begun
        with torch.random.fork_rng(devices=[], enabled=goes_on and self._taken > 0):
            self._iterator = self._asking(lambda: iter(self._source))
            again, self._again = self._again, 0
            if again:
                self._read_again(again)

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
        if self._replay:
            self._seal = _fingerprint(batch)
        return batch

    def peek(self) -> Batch:
        """Look at the next candidate batch without taking it; raises as `next` does."""
        if self._held is None:
            before = self.state_dict()
            self._held = (self._pull(), before)
        return self._held[0]

    def stop(self) -> None:
        """Let go of the source's iterator: the pass is over or given up."""
        if self._held is not None:  # the source is past a batch that nobody took
            self._stopped_at = self._held[1]
        self._iterator, self._held = None, None

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last batch taken."""
        if self._held is not None:
            return self._held[1]
        if self._stopped_at is not None:
            return self._stopped_at
        state: dict[str, Any] = {"taken": self._taken}
        if self._replay and self._taken:
            state["seal"] = self._seal
        shuffle = self._shuffle_state() if self._shuffle is None else self._shuffle
        if shuffle:
            state["shuffle"] = shuffle
        position = self._position()
        return state if position is None else {**state, "source": position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that `state` describes, at the next `start`.

        Raises:
            SourceError: the source has no state and may not be read again.
        """
        self.check(state)
        self._again = 0
        if "source" in state and isinstance(self._source, Stateful):
            self._source.load_state_dict(state["source"])
        else:
            self._again = int(state["taken"])
        self.stop()
        self._taken, self._goes_on = int(state["taken"]), True
        self._seal, self._shuffle = state.get("seal"), state.get("shuffle")
        self._ended, self._broken_at, self._stopped_at = False, None, None

    def check(self, state: dict[str, Any]) -> None:
        """Make sure that the source can go on from `state`, without moving it.

        Raises:
            SourceError: the source has no state and may not be read again.
        """
        held = "source" in state and isinstance(self._source, Stateful)
        if state["taken"] and not held and not self._replay:
            raise SourceError(
                f"the snapshot holds no state_dict of {type(self._source).__name__}, so it cannot "
                f"continue after batch {state['taken']}; wrap a source that has one (a "
                "ParquetSource or TarSource itself, without a DataLoader around it, or torchdata's "
                "StatefulDataLoader), or pass replay=True if it always gives the same batches in "
                "the same order. To begin the stream anew, load the rest of the snapshot without "
                "the loader's part"
            )

    def warn_of_lost_place(self) -> None:
        """Say now, and not when a snapshot is loaded, that its place in the source is lost."""
        if self._taken and not self._replay and not self._told and self._position() is None:
            self._told = True
            _log.warning(
                "%s has no state_dict, so nobody can go on from this snapshot's place in it; wrap "
                "a source that has one, or pass replay=True if it always gives the same batches "
                "in the same order",
                type(self._source).__name__,
            )

    def close(self) -> None:
        """Let go of the source, and close it if it can be closed."""
        self.stop()
        close = getattr(self._source, "close", None)
        if callable(close):
            close()

    def _shuffle_state(self) -> list[Tensor]:
        """Ask the generators of a DataLoader where they stand, if it is to be read again."""
        return [one.get_state() for one in _generators(self._source)] if self._replay else []

    def _set_shuffle(self, states: list[Tensor]) -> None:
        for generator, state in zip(_generators(self._source), states, strict=False):
            generator.set_state(state)

    def _position(self) -> dict[str, Any] | None:
        """Ask the source where it stands, or give None where it cannot say."""
        if not isinstance(self._source, Stateful):
            return None
        try:
            return self._source.state_dict()
        except AttributeError:  # accelerate's loaders have the method and nothing behind it
            return None

    def _read_again(self, taken: int) -> None:
        warnings.warn(
            f"{type(self._source).__name__} has no state_dict: reading {taken} batches again to "
            "find the place; the run continues exactly only if they come in the same order",
            RuntimeWarning,
            stacklevel=4,
        )
        batch: Batch = None
        for index in range(taken):
            try:
                batch = self._pull()
            except StopIteration:
                raise SourceError(
                    f"the source ended after {index} batches, the snapshot was taken after "
                    f"{taken}; it is not the same stream"
                ) from None
        if self._seal not in (None, _fingerprint(batch)):
            raise SourceError(
                f"batch {taken} is not the one that the snapshot was taken after: the source "
                "gives its batches in another order. Seed its shuffle (generator=), or wrap a "
                "source that has state_dict"
            )

    def _pull(self) -> Batch:
        iterator = self._iterator
        assert iterator is not None, "start comes first"
        batch = self._asking(lambda: next(iterator, _END))
        if batch is _END:
            # a snapshot from here on begins the next pass
            self._taken, self._ended, self._shuffle = 0, True, None
            raise StopIteration
        return batch

    def _asking(self, ask: Callable[[], _T]) -> _T:
        """Ask the source for something, and say where it failed if it does."""
        try:
            return ask()
        except Exception as error:
            self._broken_at = self._position()
            self._goes_on = self._broken_at is not None
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


def _generators(source: Any) -> list[torch.Generator]:
    """Find the generators that a DataLoader and its samplers shuffle with, each once."""
    batches = getattr(source, "batch_sampler", None)
    parts = (source, getattr(source, "sampler", None), getattr(batches, "sampler", None))
    found = [getattr(part, "generator", None) for part in parts]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def _fingerprint(batch: Batch) -> int:
    """Sum up a batch by its first row, as far as that lies on the host."""
    try:
        leaves = trees.flatten(batch)
    except BatchError:
        return 0  # whoever selects from it says what is wrong with it
    seal = 0
    for path, leaf in leaves.items():
        first: Any = leaf[:1]
        if isinstance(first, Tensor):
            on_host = first.device.type == "cpu"
            first = first.detach().contiguous().view(torch.uint8).numpy() if on_host else ""
        data = first.tobytes() if isinstance(first, np.ndarray) else _text(first)
        seal = zlib.crc32(data, zlib.crc32(path.encode(), seal))
    return seal


def _text(entries: Any) -> bytes:
    """Give entries that print the same in every process as bytes; others as nothing."""
    plain = all(isinstance(entry, str | bytes | int | float) for entry in entries)
    return repr(entries).encode("utf-8", "surrogatepass") if plain else b""
