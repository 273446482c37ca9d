"""The training compute of a run whose losses come from serving, beside full training's.

Run `python benchmarks/serving_run.py`; `--rows 0` takes the whole year. Trainer, server and stream
are those of `adasel-stream demo --losses serving`. Counted are rows through the network, a forward
pass as one and a backward pass as two; timed are those passes with the optimizer's step, in
processor time of the training thread. Both have the scoring passes of an arm that scores to choose;
scoring for the comparison alone is in neither. Target: at most 0.25 of full training at rate 0.2,
by count and by time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adasel_stream.costs import BACKWARD_FORWARDS
from adasel_stream.demo.arms import Arm
from adasel_stream.demo.model import Inputs
from adasel_stream.demo.plan import (
    FULL,
    LABELS,
    SERVING,
    ahead_rows,
    candidates_for,
    make_arms,
    turn_rows,
    turns,
)
from adasel_stream.demo.serving import Serving
from adasel_stream.demo.shards import Prepared, open_shards, prepare

_TARGET = 0.25


class Passes:
    """Counts and times the passes that an arm needs, whoever asks for them.

    Args:
        arm: whose learner to watch; its scoring passes count when it says that it needs them.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.trained = 0
        self.seconds = 0.0
        learner: Any = arm.learner
        learner.losses = self._timed(learner.losses)
        learner.update = self._timed(learner.update)
        if arm.charges.scores:
            learner.network.forward = self._scoring(learner.network.forward)

    @property
    def count(self) -> float:
        """Forward passes of one row, scoring to choose included."""
        scored = self.arm.learner.progressive.seen if self.arm.charges.scores else 0
        return scored + (1 + BACKWARD_FORWARDS) * self.trained

    def _timed(self, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(given: Inputs | Tensor) -> Any:
            if isinstance(given, Inputs):
                self.trained += len(given.late)
            return self._clocked(work, given)

        return timed

    def _scoring(self, forward: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
        def scoring(given: Inputs) -> Tensor:
            if torch.is_grad_enabled():  # a training pass, which `_timed` times
                return forward(given)
            scores: Tensor = self._clocked(forward, given)
            return scores

        return scoring

    def _clocked(self, work: Callable[[Any], Any], given: Inputs | Tensor) -> Any:
        began_s = time.thread_time()
        done = work(given)
        self.seconds += time.thread_time() - began_s
        return done


class Cost(NamedTuple):
    """What an arm took, as shares of full training.

    Attributes:
        passes: counted.
        seconds: those of the same passes, timed.
        thread: everything that its training thread did for it, choosing and look-ups included.
    """

    passes: float
    seconds: float
    thread: float


def run(prepared: Prepared, sampling_rate: float, folder: Path) -> list[Passes]:
    """Train all arms on the stream, in turns, as the demo does."""
    shards = prepared.shards("parquet")
    with Serving(
        folder,
        prepared,
        "parquet",
        batch_size=candidates_for(sampling_rate),
        most_rows=turn_rows(prepared.rows, sampling_rate) + ahead_rows(sampling_rate),
        tell=print,
    ) as serving:
        arms = make_arms(
            lambda batch_size: open_shards(shards, "parquet", batch_size),
            prepared.sizes,
            prepared.rows,
            sampling_rate=sampling_rate,
            seed=0,
            serving=serving,
        )
        watched = [Passes(arm) for arm in arms]
        for until in turns(prepared.rows, sampling_rate):
            for arm in arms:
                arm.advance(until)
    return watched


def shares(one: Passes, full: Passes) -> Cost:
    """Relate an arm to full training."""
    return Cost(
        one.count / full.count, one.seconds / full.seconds, _thread_s(one) / _thread_s(full)
    )


def _thread_s(one: Passes) -> float:
    spent = one.arm.metrics.phase_seconds
    return float(sum(spent[phase] for phase in one.arm.charges.cost))


def main() -> None:
    """Print one line an arm, and what became of the look-ups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="flights; 0 for all")
    parser.add_argument("--rate", type=float, default=0.2, help="share to train on")
    parser.add_argument("--data", type=Path, help="folder of prepared flights; made if missing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(options.data or Path(folder, "data"), options.rows or None, print)
        watched = run(prepared, options.rate, Path(folder, "serving"))
    by_name = {one.arm.name: one for one in watched}
    full, served = by_name[FULL], by_name[SERVING]
    print(f"{prepared.rows:,} flights, rate {options.rate:g}; as a share of full training:")
    print(f"{'':24} {'counted':>8} {'timed':>8} {'target':>7} {'with choosing':>14} {'loss':>7}")
    for name, one in by_name.items():
        cost, loss = shares(one, full), one.arm.learner.progressive.loss
        target = f"{_TARGET:7.2f}" if one is served else " " * 7
        line = f"{LABELS[name]:24} {cost.passes:8.3f} {cost.seconds:8.3f} {target}"
        print(f"{line} {cost.thread:14.3f} {loss:7.4f}")
    rows = served.arm.metrics.score_rows
    looked_up = sum(served.arm.metrics.record_lookups.values())
    hits = served.arm.metrics.record_lookups["hit"]
    print(
        f"look-ups that hit: {hits / max(looked_up, 1):.4%} of {looked_up:,}; rows unknown: "
        f"{rows['unknown']:,}; rows scored to choose: {rows['forward']:,}"
    )


if __name__ == "__main__":
    main()
