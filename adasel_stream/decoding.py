"""Fetch and decode chosen rows in a pool of threads.

Candidates are cheap while they are raw: encoded bytes, or references to where the bytes lie. Rows
that are not chosen are neither read nor decoded.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from adasel_stream import trees
from adasel_stream.errors import BatchError, DecodeError
from adasel_stream.rows import Leaves, chosen_rows, joined_rows, place, row_count
from adasel_stream.stacking import collated, kind_of, stacked, told_of
from adasel_stream.types import Batch, Fetching, Sample

__all__ = ["Decoded", "Decoder", "Decoding", "decoder_for", "fetching"]

_log = logging.getLogger(__name__)

_PIECE_ROWS: Final = 16
"""Rows of one task: enough to outweigh its hand-over, few enough to keep all threads at work."""

_MOST_THREADS: Final = 8

_HOPELESS: Final = 1000
"""So many failures in a row are no accident of single samples."""

_SAMPLES: Final = "samples"


class Decoded(NamedTuple):
    """Rows that were decoded.

    Attributes:
        columns: what came of them, n rows each; None in place of a row that failed.
        errors: why a row failed, by its number.
    """

    columns: Leaves
    errors: Mapping[int, Exception]


@dataclass(frozen=True)
class Decoding:
    """How chosen rows are decoded; a bare function means `Decoding(function)`.

    Attributes:
        function: from one raw sample, a batch's structure with one row's values, to the sample that
            is trained on: a structure of tensors, arrays, numbers and strings that torch's
            `default_collate` stacks. Called in threads; None keeps what was read.
        workers: threads; 0 decodes in the training thread. Decoders of images and numpy let other
            threads run; pure Python does not, and gains nothing from more than one.
        ahead: batches that are chosen, and being decoded, beyond the one that comes next.

    Raises:
        TypeError: an argument of another type.
        ValueError: a number below 0.

    >>> Decoding(lambda sample: {"x": len(sample["jpg"])}, workers=2).ahead
    1
    """

    function: Callable[[Sample], Sample] | None = None
    workers: int = field(default_factory=lambda: min(_MOST_THREADS, os.cpu_count() or 1))
    ahead: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.function is not None and not callable(self.function):
            raise TypeError(
                f"decode must be a function of a sample, got {type(self.function).__name__}"
            )
        for name, number in (("workers", self.workers), ("ahead", self.ahead)):
            if not isinstance(number, int) or isinstance(number, bool):
                raise TypeError(f"{name} must be a whole number, got {type(number).__name__}")
            if number < 0:
                raise ValueError(f"{name} must be at least 0, got {number}")


def fetching(source: Any) -> Fetching | None:
    """Find who can fetch the columns that a source defers: itself, or its data set.

    >>> fetching([1, 2]) is None
    True
    """
    for one in (source, getattr(source, "dataset", None)):
        if isinstance(one, Fetching) and one.deferred:
            return one
    return None


def decoder_for(
    decode: Callable[[Sample], Sample] | Decoding | None,
    source: Any,
    device: torch.device | None,
    counts: dict[str, int],
) -> "Decoder | None":
    """Make what decodes chosen rows, or None where there is nothing to fetch or to decode.

    >>> decoder_for(None, [1, 2], None, {}) is None
    True
    """
    fetches = fetching(source)
    if decode is None and fetches is None:
        return None
    decoding = decode if isinstance(decode, Decoding) else Decoding(decode)
    return Decoder(decoding, fetches, device, counts)


class Decoder:
    """Turns raw rows into rows of a batch, in a pool of threads.

    Args:
        decoding: the function and how much is done at once.
        source: fetches deferred columns, or None where nothing is deferred.
        device: where batches go, or None for where samples are.
        counts: rows by what became of them, `decoded` and `failed`; added to.

    Attributes:
        ahead: batches that are decoded beyond the one that comes next.
        kind: what samples are, as `kind_of` describes it; None before the first.
        piece_rows: rows that `begin` is best given, or None for all there are.
    """

    def __init__(
        self,
        decoding: Decoding,
        source: Fetching | None,
        device: torch.device | None,
        counts: dict[str, int],
    ) -> None:
        self.ahead = decoding.ahead
        # what is only fetched is best fetched at once: neighbours may share a page
        self.piece_rows = None if decoding.function is None else _PIECE_ROWS
        self._function = decoding.function
        self._source = source
        self._device = device
        self._workers = decoding.workers
        self._counts = counts
        self._failed_in_a_row = 0
        self._last_error: Exception | None = None
        self.kind: str | None = None
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, leaves: Leaves, template: Batch) -> "Future[Decoded]":
        """Decode rows of raw leaves, n each, built as `template` is."""
        if self._workers:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, "adasel-decode")
            return self._pool.submit(self._work, leaves, template)
        done: Future[Decoded] = Future()
        done.set_result(self._work(leaves, template))
        return done

    def all_of(self, leaves: Leaves, template: Batch) -> tuple[Leaves, list[int]]:
        """Decode all rows and wait for them; give those that did not fail, and their numbers."""
        rows = row_count(leaves)
        step = self.piece_rows or rows
        begun = [
            self.begin({p: leaf[at : at + step] for p, leaf in leaves.items()}, template)
            for at in range(0, rows, step)
        ]
        good: list[int] = []
        parts: list[Leaves] = []
        for number, future in enumerate(begun):
            decoded = future.result()
            kept = self.good_rows(decoded, range(row_count(decoded.columns)))
            parts.append(chosen_rows(decoded.columns, torch.tensor(kept, dtype=torch.int64)))
            good += [number * step + row for row in kept]
        return joined_rows(parts), good

    def good_rows(self, decoded: Decoded, rows: Sequence[int]) -> list[int]:
        """Leave out rows that failed, and count both kinds.

        Raises:
            DecodeError: only failures came for so long that the decoder itself must be wrong.
        """
        good: list[int] = []
        for row in rows:
            error = decoded.errors.get(row) or self._odd(decoded, row)
            if error is None:
                good.append(row)
                self._failed_in_a_row = 0
            else:
                self._count_failure(error)
        self._counts["decoded"] += len(good)
        return good

    def check_success(self) -> None:
        """Make sure that, of all that was tried so far, something could be decoded.

        Raises:
            DecodeError: nothing could.
        """
        if self._counts["failed"] and not self._counts["decoded"]:
            raise self._hopeless(f"none of {self._counts['failed']} chosen samples can be decoded")

    def built(self, columns: Leaves, template: Batch) -> Batch:
        """Make a batch of decoded rows, on the device.

        Raises:
            BatchError: samples of different shapes or of a type that cannot be stacked.
        """
        if self._function is None:
            batch = trees.rebuild(template, {p: stacked(leaf) for p, leaf in columns.items()})
        else:
            batch = collated(columns[_SAMPLES])
        if self._device is None:
            return batch
        return trees.rebuild(batch, place(trees.flatten(batch), self._device))

    def close(self) -> None:
        """Let go of the threads, once they have done what was begun; `begin` makes new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def _work(self, leaves: Leaves, template: Batch) -> Decoded:
        try:
            fetched = self._fetched(leaves)
        except Exception as error:  # whatever a source raises: none of these rows can be had
            fetched = Decoded(leaves, dict.fromkeys(range(row_count(leaves)), error))
        if self._function is None:
            return fetched
        errors, samples = dict(fetched.errors), list[Sample]()
        for row in range(row_count(leaves)):
            samples.append(None)
            if row in errors:
                continue
            values: dict[str, Any] = {path: leaf[row] for path, leaf in fetched.columns.items()}
            try:
                samples[row] = self._function(trees.rebuild(template, values))
            except Exception as error:  # whatever a decoder raises: this sample cannot be had
                errors[row] = error
        return Decoded({_SAMPLES: samples}, errors)

    def _odd(self, decoded: Decoded, row: int) -> Exception | None:
        """Say what is wrong with a sample that cannot be stacked with the first one."""
        if self._function is None:
            return None
        kind = kind_of(decoded.columns[_SAMPLES][row])
        if self.kind is None:
            self.kind = kind
        if kind == self.kind:
            return None
        return BatchError(
            f"decode gave {kind}, before it had given {self.kind}; give every sample the same "
            "structure, shapes and dtypes"
        )

    def _fetched(self, leaves: Leaves) -> Decoded:
        """Put content in place of references."""
        if self._source is None:
            return Decoded(leaves, {})
        paths = {name: f"[{name!r}]" for name in self._source.deferred}
        if missing := [name for name, path in paths.items() if path not in leaves]:
            raise BatchError(f"batches have no column {missing[0]!r}, which the source defers")
        contents = self._source.fetch({name: leaves[path] for name, path in paths.items()})
        errors: dict[int, Exception] = {}
        columns = dict(leaves)
        for name, content in contents.items():
            column: list[Any] = list(content)
            for row, value in enumerate(column):
                if isinstance(value, Exception):
                    errors[row], column[row] = value, None
            columns[paths[name]] = column
        return Decoded(columns, errors)

    def _count_failure(self, error: Exception) -> None:
        self._last_error = error
        self._counts["failed"] += 1
        self._failed_in_a_row += 1
        if (failed := self._counts["failed"]) == 10 ** (len(str(failed)) - 1):  # 1, 10, 100, ...
            _log.warning(
                "%d samples could not be decoded so far, the last by %s; others took their places, "
                "and adasel_decode_rows_total counts them",
                failed,
                told_of(error),
            )
        if self._failed_in_a_row >= _HOPELESS:
            raise self._hopeless(f"{_HOPELESS:,} samples in a row cannot be decoded")

    def _hopeless(self, what: str) -> DecodeError:
        error = self._last_error
        told = "" if error is None else f"; the last one raised {told_of(error)}"
        failure = DecodeError(
            f"{what}, so the fault is rather with decode= or the source than with a sample{told}"
        )
        failure.__cause__ = error
        return failure
