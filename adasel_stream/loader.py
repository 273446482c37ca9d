"""`SelectingLoader`: between a stream of candidate batches and its trainer."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from adasel_stream.adaselection import Policy
from adasel_stream.agreement import FORMAT, check_state, metrics_for
from adasel_stream.barren import BarrenPasses
from adasel_stream.candidates import Candidates
from adasel_stream.chooser import Chooser
from adasel_stream.costs import Cost, cost_of, tell
from adasel_stream.decoding import Decoding, decoder_for
from adasel_stream.emitted import Emissions, Emitted, check_losses, weighted_mean
from adasel_stream.errors import AdaselError
from adasel_stream.guarding import Guards, guarding_for
from adasel_stream.known import KnownLosses
from adasel_stream.lookups import lookups_for, reference_for
from adasel_stream.loss_batch import Method
from adasel_stream.methods import check_recorded, last_layer_for, needs, resolve_methods
from adasel_stream.metrics import Metrics
from adasel_stream.paying import Gain
from adasel_stream.policies import resolve_policy
from adasel_stream.proxy import Proxy, ProxyWatch
from adasel_stream.record import LossRecord
from adasel_stream.rows import usable
from adasel_stream.scorers import Score, scorer_for
from adasel_stream.selector import Selector
from adasel_stream.serving import LossFeed
from adasel_stream.stopping import StopIndicator, indicator_for
from adasel_stream.types import Batch, Ids, Sample
from adasel_stream.windows import gather, window_of

__all__ = ["SelectingLoader"]


class SelectingLoader:
    """Iterate over batches of chosen samples instead of all that a source offers.

    Rows that wait for a full batch are carried over, also from one pass to the next; nothing
    that was selected is lost, but a short pass may emit no batch. There is no `len`: how many
    batches come depends on the data.

    Args:
        source: any iterable of candidate batches: a DataLoader, a pipeline, a generator.
        score: gives the losses of a candidate batch, shape (b,), or `Scored`; a `Proxy` gives
            something cheaper that ranks rows alike. None selects by the record alone; rows that it
            does not know count as average.
        model: the model that `score` calls; it is scored in eval mode and without gradients,
            and left as it was. Without it `score` is called as it is.
        sampling_rate: share γ of the candidates to train on, in (0, 1].
        policy: "auto", "unbiased", "aligned", "paper", or a `Policy`.
        methods: names of built-in methods and functions of your own, or a mapping to functions;
            None for those of the policy.
        batch_size: rows of every emitted batch; by default those of the first candidate batch.
        window: candidate batches that are chosen from together, as one; by default as many as
            make one emitted batch, up to 64 and a gibibyte, and 1 where the policy is "paper".
        record: known losses by instance; known and fresh ones are not scored again.
        ids: where a batch holds its instances' ids: a key, a path such as ("meta", "id"), or a
            function of the batch. Needed with `record`, unused without.
        serving: the folder in which serving processes write losses by `LossWriter`, or a `LossFeed`
            of it; they go into `record` as they come.
        reference: losses under a reference model, for methods such as "reducible_loss": a function
            of a batch that gives them, shape (b,), NaN where unknown, or a `LossRecord`, by `ids`.
        labels: where a batch holds its labels, as `ids` says where it holds ids; predictions that
            wait in the record become losses when their labels come by.
        decode: turns one chosen raw sample into what is trained on, after selection and in threads;
            a function, or `Decoding` with their number. A source's deferred columns are fetched
            first, and where there are any, decode may be left out.
        device: where batches are scored and emitted; numeric arrays become tensors there. None
            leaves batches where they are.
        autocast: dtype to autocast scoring to, or None.
        stop: says how little is left to learn, from the stream's loss before training and the
            gain, and calls back; advice alone. The loader makes one without a callback by default.
        guards: caps on suspicious rows and least rates of named slices.
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
        policy: str | Policy = "auto",
        methods: Sequence[str | Method] | Mapping[str, Method] | None = None,
        batch_size: int | None = None,
        window: int | None = None,
        record: LossRecord | None = None,
        ids: Any = None,
        serving: LossFeed | str | PathLike[str] | None = None,
        reference: Callable[[Batch], Tensor] | LossRecord | None = None,
        labels: Any = None,
        decode: Callable[[Sample], Sample] | Decoding | None = None,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
        stop: StopIndicator | None = None,
        guards: Guards | None = None,
        seed: int = 0,
        replay: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        rule = resolve_policy(policy)
        named = resolve_methods(rule.methods if methods is None else methods)
        wanted = needs(named) | rule.needs
        references = reference_for(reference, ids, wanted)
        proxy, recorded = isinstance(score, Proxy), record is not None
        check_recorded(named, recorded)
        bare = proxy or (recorded and model is None)  # a proxy's last layer is not the model's
        last_layer = last_layer_for(wanted, recorded, bare=bare)
        scorer = scorer_for(score, model, autocast=autocast, last_layer=last_layer)
        chooser = Chooser(named, rule, sampling_rate=sampling_rate, seed=seed)
        watched = indicator_for(stop)
        guarding = guarding_for(guards, sampling_rate, recorded=recorded)
        self._candidates = Candidates(source, replay=replay)
        self._window = window_of(window, wide=not rule.whole_batches)
        self.metrics = metrics_for(
            metrics, list(named), () if guards is None else guards.names, sampling_rate, rule.name
        )
        lookups = lookups_for(record, ids, labels, serving)
        home = None if device is None else usable(device)
        self._decoder = decoder_for(decode, source, home, self.metrics.decode_rows)
        self._selector = Selector(
            KnownLosses(scorer, lookups, self._decoder, references),
            chooser,
            batch_size=batch_size,
            device=home,
            decoder=self._decoder,
            stop=watched,
            guarding=guarding,
            proxy=ProxyWatch(score.floor) if isinstance(score, Proxy) else None,
            metrics=self.metrics,
        )
        self._settings = {
            "sampling_rate": sampling_rate,
            "policy": {"name": rule.name, **rule.settings},
            "methods": list(named),
            "seed": seed,
            "window": self._window,
            "guards": None if guards is None else guards.settings,
            "proxy": score.floor if isinstance(score, Proxy) else None,
            "stop": watched.settings,
            "record": recorded,
        }
        forward = score is not None and not proxy
        watches = chooser.rules is not None
        cost = cost_of(
            sampling_rate, forward=forward, record=recorded, proxy=proxy, gives_up=watches
        )
        if not cost.pays and watches:
            chooser.give_up()
            self.metrics.observe_watch("", chooser.watch, chooser.gain)
        self._untold: Cost | None = cost
        self._emissions = Emissions(weighed=not rule.noisy or recorded or proxy)
        self._step_began_s: float | None = None
        self._pass: object = None
        self._over = False
        self._goes_on = False
        self._barren = BarrenPasses()
        counts: Any = source if isinstance(getattr(source, "counts", None), Mapping) else None
        self.metrics.watch(source=counts)
        self._own_feed: LossFeed | None = None
        if lookups is not None:
            self.metrics.score_mode = "record" if score is None else "forward and record"
            if serving is not None:  # last, since it takes the folder
                self._own_feed = lookups.follow(serving)
            self.metrics.watch(record=record, feed=lookups.feed, staleness=lookups.staleness)

    @property
    def weights(self) -> Tensor:
        """Importance weights of the batch emitted last, shape (batch_size,), mean about 1.

        Raises:
            AdaselError: no batch was emitted yet.
        """
        return self._emissions.last.rows.weights

    @property
    def gain(self) -> Gain:
        """Share of uniform sampling's gradient noise that selection removes, NaN while unknown.

        Only a policy that watches itself, such as "auto", knows it: its mean, and an interval of
        two standard errors from `low` to `high`. It is of the last layer's gradients: of all
        candidates where they are scored with them, elsewhere of trained rows of the control arm, as
        the backward pass sees them. Where `mean` is given losses without a graph, which a log line
        says, losses are taken for gradients, and it may promise too much. Judged by time it is less
        what choosing costs.
        """
        return self._selector.gain

    def __iter__(self) -> Iterator[Batch]:
        """Make a pass over the source; one at a time, a newer pass ends an older one.

        Raises:
            AdaselError: a newer pass has begun, or another state was loaded meanwhile.
            SourceError, BatchError, ScoreError, MethodError: the source failed, or a candidate
                batch cannot be used; rows that were selected before are kept.
            DecodeError: nothing that was chosen can be decoded.
        """
        mine = self._pass = object()
        cost, self._untold = self._untold, None
        if cost is not None:
            tell(cost, stacklevel=2)
        barren = not self._goes_on  # of the rest of a pass nothing can be said
        self._over, self._goes_on = self._over and self._goes_on, False
        if not self._over:
            self._candidates.start()
        self._emissions.start()
        try:
            while self._pass is mine and (next_one := self._next()) is not None:
                barren = False
                batch, emitted = next_one
                self._emissions.add(batch, emitted)
                self._step_began_s = time.perf_counter()
                with self.metrics.phase("train"):
                    yield batch
                # while the next candidates are scored, only the trainer may hold the batch
                del batch, next_one
                if self._pass is mine:
                    self._end_step()
            if self._pass is mine:
                self._over = False
                if barren and self._selector.waiting:
                    self._barren.tell(self._selector.waiting, self._selector.batch_size)
            elif self._pass is not None:
                raise AdaselError(
                    "this pass is over: the loader was iterated anew or its state was loaded. Use "
                    "the newest iterator, or make a second loader"
                )
        finally:
            if self._pass in (mine, None):
                self._end_step()
                self._candidates.stop()

    def mean(self, losses: Tensor, batch: Batch = None) -> Tensor:
        """Average the emitted batch's losses by importance, and learn from them.

        The result estimates the mean loss over all candidates. The losses go to the record and
        move the method weights, both without waiting for the device; only those of the first
        call for a batch do. Where losses are all that is known of candidates, the policy learns
        from gradients, of the first call whose result can be differentiated, once it is.

        Args:
            losses: fresh losses of an emitted batch, shape (batch_size,), with gradient.
            batch: that batch; needed where something reads ahead of the training step, so that
                it is not the one emitted last.

        Returns:
            the loss to call `backward` on, shape ().

        Raises:
            ValueError: another shape, such as an averaged loss.
            TypeError: losses are no tensor.
            AdaselError: no batch was emitted yet, or it cannot be told which one is meant.
        """
        emission = self._emissions.of(batch)
        rows = emission.rows
        check_losses(losses, rows.weights)
        mean = weighted_mean(losses, rows.weights)
        if self._emissions.teach(emission):
            emission.stands_for = self._selector.learn(rows, losses)
        if emission.stands_for and losses.grad_fn is not None and mean.requires_grad:
            batches, emission.stands_for = emission.stands_for, 0
            self._selector.listen(rows, losses, batches)
        return mean

    def observe(self, ids: Ids | Tensor, losses: Tensor | npt.NDArray[Any]) -> None:
        """Record losses that were computed elsewhere, such as while serving.

        Args:
            ids: instance ids, b of them.
            losses: floating point, shape (b,).

        Raises:
            BatchError: ids that are neither whole numbers nor strings.
            ValueError: not one loss per id, or the loader has no record.
            RecordError: losses that are not floating point.
        """
        self._selector.observe(ids, losses)

    def state_dict(self) -> dict[str, Any]:
        """Describe the loader after the batch emitted last, for `save_checkpoint`.

        Call it when that batch was trained on: what `mean` learnt is part of it.
        """
        self._end_step()
        self._candidates.warn_of_lost_place()
        return {
            "format": FORMAT,
            "settings": dict(self._settings),
            "candidates": self._candidates.state_dict(),
            "selector": self._selector.state_dict(),
            "over": self._over,
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that `state` describes, at the next iteration.

        Raises:
            ValueError: the state is of another format or of other settings; it names both.
            SourceError: the source cannot go back there.
            RecordError: the state is of a record of other settings.
        """
        check_state(state, self._settings)
        self._candidates.check(state["candidates"])
        self._selector.load_state_dict(state["selector"])
        self._candidates.load_state_dict(state["candidates"])  # the source moves last
        self.metrics.load_state_dict(state["metrics"])
        self._over, self._goes_on = bool(state["over"]), True
        self._pass, self._step_began_s = object(), None
        self._emissions.clear()
        self._untold = None

    def close(self) -> None:
        """End the pass under way and close the source; rows that wait are kept."""
        self._pass = None
        self._selector.drain()
        if self._decoder is not None:
            self._decoder.close()
        if self._own_feed is not None:
            self._own_feed.close()
        self._candidates.close()

    def __enter__(self) -> Self:
        """Return the loader; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the loader."""
        self.close()

    def _next(self) -> tuple[Batch, Emitted] | None:
        """Take the next batch out, offering candidates until there is one; None at the end."""
        while not self._over:
            if not self._selector.full or not self._selector.knows_structure:
                self._over = not self._offer()
            elif (emitted := self._selector.pop()) is not None:
                return emitted
        self._selector.finish()
        emitted = self._selector.pop()
        if emitted is None and self._decoder is not None:
            self._decoder.check_success()
        return emitted

    def _offer(self) -> bool:
        """Offer the next candidates; False where the source ends before."""
        with self.metrics.phase("data_wait"):
            if self._selector.full:  # resumed: the next candidates show their structure
                try:
                    self._selector.learn_structure(self._candidates.peek())
                except StopIteration:
                    return False
                return True
        try:
            gather(
                self._take,
                window=self._window,
                batch_size=self._selector.batch_size,
                sampling_rate=self.metrics.selection_target_ratio,
            )
        except StopIteration:
            return False
        finally:  # also where the source fails or a batch is refused: those before it are not lost
            self._selector.choose()
        return True

    def _take(self) -> tuple[int, int]:
        """Take the next candidate batch into the window, and say how many rows and bytes it has."""
        with self.metrics.phase("data_wait"):
            batch = self._candidates.next()
        return self._selector.take(batch)

    def _end_step(self) -> None:
        """Count the step on the batch emitted last, once."""
        if self._step_began_s is not None:
            self.metrics.observe_step(time.perf_counter() - self._step_began_s)
            self._step_began_s = None
