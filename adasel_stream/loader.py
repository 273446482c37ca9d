"""`SelectingLoader`: between a stream of candidate batches and its trainer."""

import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adasel_stream import trees
from adasel_stream.adaselection import Policy
from adasel_stream.candidates import Candidates
from adasel_stream.costs import cost_of
from adasel_stream.errors import AdaselError
from adasel_stream.known import KnownLosses, as_ids
from adasel_stream.methods import DEFAULT_METHODS, gradient_norm, resolve_methods
from adasel_stream.metrics import Metrics
from adasel_stream.policies import resolve_policy
from adasel_stream.record import LossRecord
from adasel_stream.scorers import ModelScorer, Score
from adasel_stream.selector import Selector
from adasel_stream.types import Batch, Ids, Method

__all__ = ["SelectingLoader"]

FORMAT = 1
"""Version of `state_dict`."""


class SelectingLoader:
    """Iterate over batches of chosen samples instead of all that a source offers.

    Rows that wait for a full batch are carried over, also from one pass to the next; nothing
    that was selected is lost. There is no `len`: how many batches come depends on the data.

    Args:
        source: any iterable of candidate batches: a DataLoader, a pipeline, a generator.
        score: gives the losses of a candidate batch, shape (b,), or `Scored`. None selects by
            the record alone; rows that it does not know count as average.
        model: the model that `score` calls; it is scored in eval mode and without gradients,
            and left as it was. Without it `score` is called as it is.
        sampling_rate: share γ of the candidates to train on, in (0, 1].
        policy: "unbiased", "paper", or a `Policy`.
        methods: names of built-in methods and functions of your own, or a mapping to functions.
        batch_size: rows of every emitted batch; by default those of the first candidate batch.
        record: known losses by instance; known and fresh ones are not scored again.
        ids: where a batch holds its instances' ids: a key, a path such as ("meta", "id"), or a
            function of the batch. Needed with `record`.
        device: where batches are scored and emitted; None leaves them where they are.
        autocast: dtype to autocast scoring to, or None.
        seed: seeds every random choice of this loader; no global generator is touched.
        replay: whether a source without `state_dict` may be read again on resume.
        metrics: counts what happens; the loader makes its own by default.

    Raises:
        ValueError: an argument out of its range, or two that exclude each other.
        TypeError: an argument of another type.

    >>> batches = [{"x": torch.arange(8.0) + 8 * i} for i in range(4)]
    >>> loader = SelectingLoader(batches, score=lambda b: b["x"], sampling_rate=0.5)
    >>> [len(batch["x"]) for batch in loader]
    [8, 8]
    """

    def __init__(
        self,
        source: Iterable[Batch],
        *,
        score: Score | None = None,
        model: nn.Module | None = None,
        sampling_rate: float,
        policy: str | Policy = "unbiased",
        methods: Sequence[str | Method] | Mapping[str, Method] = DEFAULT_METHODS,
        batch_size: int | None = None,
        record: LossRecord | None = None,
        ids: Any = None,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
        seed: int = 0,
        replay: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        if not isinstance(source, Iterable):
            raise TypeError(f"source must be an iterable of batches, got {type(source).__name__}")
        _check(sampling_rate, batch_size, score, record, ids)
        self._policy = resolve_policy(policy)
        self._methods = resolve_methods(methods)
        _check_floor(self._policy, len(self._methods))
        wants_norms = gradient_norm in self._methods.values()
        if wants_norms and record is not None:
            raise ValueError(
                "method 'gradient_norm' needs a forward pass of every row and record= skips it for "
                "known rows; leave one of them out"
            )
        if model is not None and score is not None:
            score = ModelScorer(score, model, autocast=autocast, last_layer=wants_norms)
        self.metrics = metrics or Metrics(
            list(self._methods),
            sampling_rate=sampling_rate,
            batch_size=batch_size or 1,
            policy=self._policy.name,
        )
        self._known = KnownLosses(score, record)
        self._candidates = Candidates(source, replay=replay)
        self._selector = Selector(
            self._known,
            self._methods,
            self._policy,
            sampling_rate=sampling_rate,
            batch_size=batch_size,
            ids=ids,
            device=None if device is None else torch.device(device),
            seed=seed,
            metrics=self.metrics,
        )
        self._settings = {
            "sampling_rate": sampling_rate,
            "policy": self._policy.name,
            "methods": list(self._methods),
            "seed": seed,
        }
        self._cost = cost_of(sampling_rate, forward=score is not None, record=record is not None)
        self._told = False
        self._template: Batch = None
        self._emitted: trees.Leaves | None = None
        self._running: Iterator[Batch] | None = None
        self.metrics.watch(record=record, source=source if hasattr(source, "counts") else None)  # type: ignore[arg-type]

    @property
    def weights(self) -> Tensor:
        """Importance weights of the batch emitted last, shape (batch_size,), mean about 1.

        Raises:
            AdaselError: no batch was emitted yet.
        """
        return self._last()["weights"]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass over the source.

        Raises:
            AdaselError: another pass is still under way; close it, or end its loop, first.
        """
        if self._running is not None:
            raise AdaselError(
                "this loader is being iterated already; two loops would share one position. End "
                "the first, or make a second loader"
            )
        self._running = self._batches()
        return self._running

    def mean(self, losses: Tensor) -> Tensor:
        """Average the emitted batch's losses by importance, and learn from them.

        The result estimates the mean loss over all candidates. The losses go to the record and
        move the method weights, both without waiting for the device.

        Args:
            losses: fresh losses of the batch emitted last, shape (batch_size,), with gradient.

        Returns:
            the loss to call `backward` on, shape ().

        Raises:
            ValueError: another shape, such as an averaged loss.
            AdaselError: no batch was emitted yet.
        """
        last = self._last()
        weights = self.weights
        if losses.shape != weights.shape:
            hint = '; compute it with reduction="none"' if losses.ndim == 0 else ""
            raise ValueError(
                f"losses must have shape {tuple(weights.shape)}, one per row of the batch emitted "
                f"last, got {tuple(losses.shape)}{hint}"
            )
        self._selector.learn(last, losses.detach())
        filled = weights > 0  # a void slot must not leak its loss, whatever that is
        weighted = torch.where(filled, losses * weights, 0.0)
        return weighted.sum() / filled.sum().clamp(min=1)

    def observe(self, ids: Ids | Tensor, losses: Tensor | npt.NDArray[Any]) -> None:
        """Record losses that were computed elsewhere, such as while serving.

        Args:
            ids: instance ids, b of them.
            losses: shape (b,).

        Raises:
            BatchError: ids that are neither whole numbers nor strings.
            ValueError: not one loss per id.
        """
        values = losses.detach().cpu().numpy() if isinstance(losses, Tensor) else np.asarray(losses)
        keys = as_ids(ids)
        if values.shape != keys.shape:
            raise ValueError(f"one loss per id is expected, got {keys.shape} and {values.shape}")
        self._known.observe(keys, values)

    def state_dict(self) -> dict[str, Any]:
        """Describe the loader after the batch emitted last, for `save_checkpoint`.

        Call it when that batch was trained on: what `mean` learnt is part of it.
        """
        return {
            "format": FORMAT,
            "settings": dict(self._settings),
            "candidates": self._candidates.state_dict(),
            "selector": self._selector.state_dict(),
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that `state` describes, at the next iteration.

        Raises:
            ValueError: the state is of another format or of other settings; it names both.
            SourceError: the source cannot go back there.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"the loader state has format {state.get('format')}, this version reads {FORMAT}"
            )
        ours, theirs = self._settings, dict(state["settings"])
        differ = [
            f"{k} {theirs.get(k)!r}, here {v!r}" for k, v in ours.items() if theirs.get(k) != v
        ]
        if differ:
            raise ValueError(f"the snapshot was taken with other settings: {'; '.join(differ)}")
        self._candidates.load_state_dict(state["candidates"])
        self._selector.load_state_dict(state["selector"])
        self.metrics.load_state_dict(state["metrics"])
        self._emitted = None
        self._told = True

    def close(self) -> None:
        """End the pass under way and close the source; rows that wait are kept."""
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
        self._selector.drain()
        self._candidates.close()

    def __enter__(self) -> Self:
        """Return the loader; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the loader."""
        self.close()

    def _batches(self) -> Iterator[Batch]:
        try:
            self._tell_cost()
            self._candidates.start()
            while True:
                while self._selector.full and self._knows_structure():
                    start = time.perf_counter()
                    leaves, self._emitted = self._selector.pop()
                    with self.metrics.phase("train"):
                        yield trees.rebuild(self._template, leaves)
                    self.metrics.observe_step(time.perf_counter() - start)
                with self.metrics.phase("data_wait"):
                    try:
                        batch = self._candidates.next()
                    except StopIteration:
                        return
                self._template = batch
                self._selector.offer(batch)
        finally:
            self._running = None

    def _knows_structure(self) -> bool:
        if self._template is None:
            try:  # resumed with whole batches waiting: the next candidates have their structure
                self._template = self._candidates.peek()
            except StopIteration:
                return False
        return True

    def _last(self) -> trees.Leaves:
        if self._emitted is None:
            raise AdaselError("no batch was emitted yet; iterate over the loader first")
        return self._emitted

    def _tell_cost(self) -> None:
        if self._told:
            return
        self._told = True
        print(self._cost.line, file=sys.stderr)
        if self._cost.saved <= 0:
            warnings.warn(
                f"selection cannot pay at sampling_rate={self._settings['sampling_rate']:g}: "
                "scoring costs at least as much as it spares; lower the rate, or select from "
                "recorded losses",
                RuntimeWarning,
                stacklevel=3,
            )


def _check(
    sampling_rate: float,
    batch_size: int | None,
    score: Score | None,
    record: LossRecord | None,
    ids: Any,
) -> None:
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate must be in (0, 1], got {sampling_rate}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if score is None and record is None:
        raise ValueError("losses must come from somewhere: pass score=, record=, or both")
    if score is not None and not callable(score):
        raise TypeError(f"score must be a function of a batch, got {type(score).__name__}")
    if record is not None and ids is None:
        raise ValueError(
            "record= needs ids=: the key of a batch under which it holds its instances' ids, such "
            'as ids="__key__"'
        )


def _check_floor(policy: Policy, methods: int) -> None:
    if policy.floor * methods > 1:
        raise ValueError(
            f"floor {policy.floor} for each of {methods} methods is more than 1 in all; lower it"
        )
