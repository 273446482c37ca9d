"""Decode what was chosen, and nothing else: fetched, decoded in a pool, put together in order.

Candidates are cheap while they are raw: encoded bytes, or references to where the bytes lie. Rows
that are not chosen are neither read nor decoded. A chosen row that cannot be decoded is counted and
the next chosen one takes its place, so that no batch is ever short.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch.utils.data import default_collate

from adasel_stream import trees
from adasel_stream.errors import BatchError, DecodeError
from adasel_stream.rows import Leaves, place, row_count
from adasel_stream.types import Batch, Fetching, Sample

__all__ = ["PIECE_ROWS", "Decoder", "Decoding", "Outcome", "decoder_for", "fetching"]

_log = logging.getLogger(__name__)

PIECE_ROWS: Final = 16
"""Rows of one task: enough to outweigh its hand-over, few enough to keep all threads at work."""

_MOST_THREADS: Final = 8

_HOPELESS: Final = 1000
"""So many failures in a row are no accident of single samples."""

Outcome: TypeAlias = Sample | Exception
"""A decoded sample, or why there is none."""


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
    """Turns raw rows into samples, in a pool of threads.

    Args:
        decoding: the function and how much is done at once.
        source: fetches deferred columns, or None where nothing is deferred.
        device: where batches go, or None for where samples are.
        counts: rows by what became of them, `decoded` and `failed`; added to.
    """

    def __init__(
        self,
        decoding: Decoding,
        source: Fetching | None,
        device: torch.device | None,
        counts: dict[str, int],
    ) -> None:
        self.ahead = decoding.ahead
        self._function = decoding.function
        self._source = source
        self._device = device
        self._counts = counts
        self._failed_in_a_row = 0
        self._pool = (
            ThreadPoolExecutor(decoding.workers, "adasel-decode") if decoding.workers else None
        )

    def begin(self, leaves: Leaves, template: Batch) -> "Future[list[Outcome]]":
        """Decode a few rows of leaves, n each, built as `template` is; n outcomes come."""
        if self._pool is not None:
            return self._pool.submit(self._work, leaves, template)
        done: Future[list[Outcome]] = Future()
        done.set_result(self._work(leaves, template))
        return done

    def all_of(self, leaves: Leaves, template: Batch) -> list[Outcome]:
        """Decode all rows and wait for them; those that fail are counted."""
        rows = row_count(leaves)
        cuts = [slice(at, at + PIECE_ROWS) for at in range(0, rows, PIECE_ROWS)]
        begun = [self.begin({p: leaf[cut] for p, leaf in leaves.items()}, template) for cut in cuts]
        return [self.count(outcome) for future in begun for outcome in future.result()]

    def count(self, outcome: Outcome) -> Outcome:
        """Count an outcome, in the order of the rows.

        Raises:
            DecodeError: only failures came for so long that the decoder itself must be wrong.
        """
        if not isinstance(outcome, Exception):
            self._counts["decoded"] += 1
            self._failed_in_a_row = 0
            return outcome
        self._counts["failed"] += 1
        self._failed_in_a_row += 1
        if (failed := self._counts["failed"]) == 10 ** (len(str(failed)) - 1):  # 1, 10, 100, ...
            _log.warning(
                "%d chosen samples could not be decoded so far (the last: %s); the next ones took "
                "their places, and adasel_decode_rows_total counts them",
                failed,
                type(outcome).__name__,
            )
        if self._failed_in_a_row >= _HOPELESS:
            raise DecodeError(
                f"{self._failed_in_a_row} chosen samples in a row cannot be decoded, so the fault "
                f"is rather with decode= or the source than with a sample; the last one raised "
                f"{type(outcome).__name__}"
            ) from outcome
        return outcome

    def collated(self, samples: list[Sample]) -> Batch:
        """Stack decoded samples into a batch, on the device.

        Raises:
            BatchError: samples of different shapes or of a type that cannot be stacked.
        """
        try:
            batch: Batch = default_collate(samples)
        except (TypeError, RuntimeError, KeyError, ValueError) as error:
            raise BatchError(
                "decoded samples cannot be stacked into a batch: decode must give every sample the "
                "same structure, shapes and dtypes, of tensors, arrays, numbers and strings"
            ) from error
        if self._device is None:
            return batch
        return trees.rebuild(batch, place(trees.flatten(batch), self._device))

    def close(self) -> None:
        """Let go of the threads; what they do is not waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, leaves: Leaves, template: Batch) -> list[Outcome]:
        rows = row_count(leaves)
        try:
            fetched = self._fetched(leaves)
        except Exception as error:  # whatever a source raises: none of these rows can be had
            return [error] * rows
        return [self._sample(leaves, fetched, template, row) for row in range(rows)]

    def _fetched(self, leaves: Leaves) -> Mapping[str, Sequence[Any]]:
        if self._source is None:
            return {}
        paths = {name: f"[{name!r}]" for name in self._source.deferred}
        if missing := [name for name, path in paths.items() if path not in leaves]:
            raise BatchError(f"batches have no column {missing[0]!r}, which the source defers")
        contents = self._source.fetch({name: leaves[path] for name, path in paths.items()})
        return {paths[name]: content for name, content in contents.items()}

    def _sample(
        self, leaves: Leaves, fetched: Mapping[str, Sequence[Any]], template: Batch, row: int
    ) -> Outcome:
        values: dict[str, Any] = {path: leaf[row] for path, leaf in leaves.items()}
        for path, content in fetched.items():
            if isinstance(content[row], Exception):
                failed: Exception = content[row]
                return failed
            values[path] = content[row]
        sample = trees.rebuild(template, values)
        if self._function is None:
            return sample
        try:
            return self._function(sample)
        except Exception as error:  # whatever a decoder raises: this sample cannot be had
            return error
