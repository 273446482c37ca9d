"""What `auto` and `aligned` add to the selection code's cost of `unbiased`.

Each policy chooses three of ten rows by the methods that it comes with, from losses that are there,
and gathers a batch with 64 float features, a label and an id. `auto` and `aligned` are given the
last layer's quantities as well, of ten classes and 64 features, and what they do with them counts:
norms, layout, alignments, and the comparison with an even draw that `auto` makes now and then. The
scoring pass captures those quantities by the way, which `unbiased` does not need: what that adds to
a pass through a linear head is a column of its own. One thread, medians of rounds that take turns;
the target is at most twice the cost added.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import cross_entropy, one_hot

from adasel_stream.chooser import Chooser
from adasel_stream.methods import resolve_methods
from adasel_stream.policies import resolve_policy
from adasel_stream.scorers import ModelScorer
from adasel_stream.types import Scored

POLICIES = ("unbiased", "auto", "aligned")
CLASSES = 10
ROUNDS = 21
TARGET = 2.0


def runs(b: int, width: int, rate: float) -> dict[str, Callable[[], object]]:
    """Build a step of each policy over b candidates, and passes with and without capture."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (b,), generator=random)
    logits = 3 * torch.randn(b, CLASSES, generator=random)
    losses = cross_entropy(logits, labels, reduction="none")
    residuals = logits.softmax(1) - one_hot(labels, CLASSES)
    features = torch.randn(b, width, generator=random).relu()
    batch = {
        "x": torch.randn(b, 64, generator=random),
        "y": labels,
        "id": torch.arange(b),
    }

    def step_of(name: str) -> Callable[[], object]:
        policy = resolve_policy(name)
        scored = Scored(losses) if name == "unbiased" else Scored(losses, residuals, features)
        chooser = Chooser(resolve_methods(policy.methods), policy, sampling_rate=rate, seed=0)

        def step() -> object:
            chosen = chooser.choose(scored)
            assert chosen is not None
            return {name: column.index_select(0, chosen.indices) for name, column in batch.items()}

        return step

    head = torch.nn.Linear(width, CLASSES)

    def score(_batch: object) -> torch.Tensor:
        return cross_entropy(head(features), labels, reduction="none")

    scorers = {
        "scored": ModelScorer(score, head),
        "captured": ModelScorer(score, head, last_layer=True),
    }
    passes = {name: partial(scorer, batch) for name, scorer in scorers.items()}
    return {**{name: step_of(name) for name in POLICIES}, **passes}


def measure(b: int, width: int, rate: float) -> dict[str, float]:
    """Give microseconds of a step of each policy."""
    steps, loops = runs(b, width, rate), max(3, 40_000 // b)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.thread_time()
            for _ in range(loops):
                step()
            times[name].append((time.thread_time() - began) / loops)
    return {name: 1e6 * statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Print a row per number of candidates and width of the last layer's input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'rows':>6} {'width':>6}" + "".join(f"{name + ' us':>13}" for name in POLICIES), end="")
    print(f"{'auto adds':>11} {'aligned adds':>13} {'target':>7} {'capture us':>11} {'then':>7}")
    for b, width in ((1024, 64), (1024, 256), (8192, 64)):
        us = measure(b, width, options.rate)
        adds = {name: us[name] / us["unbiased"] - 1 for name in POLICIES}
        print(f"{b:>6} {width:>6}" + "".join(f"{us[name]:>13.1f}" for name in POLICIES), end="")
        capture = us["captured"] - us["scored"]
        then = (us["auto"] + capture) / us["unbiased"] - 1
        print(f"{adds['auto']:>10.2f}x {adds['aligned']:>12.2f}x {TARGET:>6.0f}x", end="")
        print(f"{capture:>12.1f} {then:>6.2f}x")


if __name__ == "__main__":
    main()
