"""Cost of one selection step, beside three lines of top-k and gather.

Five methods and the unbiased draw on one side, `torch.topk` and indexing on the other; both
gather the chosen rows of a batch with 64 float features, a label and an id. Run on a CPU with
one thread, or with `--device cuda`, where the step is also captured in a graph.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from adasel_stream.adaselection import step
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import DEFAULT_METHODS, resolve_methods
from adasel_stream.policies import unbiased
from adasel_stream.selection import State

TARGETS = {128: 10.0, 1024: 5.0, 8192: 3.0, 65536: 2.0}
REPEATS = 15


def candidate_batch(b: int, device: str) -> dict[str, Tensor]:
    """Make b rows as a table of features would give them."""
    return {
        "x": torch.randn(b, 64, device=device),
        "y": torch.randint(0, 10, (b,), device=device),
        "id": torch.arange(b, device=device),
    }


def contestants(b: int, rate: float, device: str) -> dict[str, Callable[[], object]]:
    """Build the two ways to choose a share `rate` of b rows."""
    batch, losses, k = candidate_batch(b, device), torch.rand(b, device=device), int(rate * b)
    methods, policy = resolve_methods(DEFAULT_METHODS), unbiased()
    generator = torch.Generator(device).manual_seed(0)
    state = State.initial(len(methods), device=device)

    def top_k() -> object:
        chosen = torch.topk(losses, k).indices
        return {name: column[chosen] for name, column in batch.items()}

    def selection() -> object:
        all_finite = losses.device.type == "cpu"
        loss_batch = LossBatch.of(losses, all_finite=all_finite)
        _, chosen = step(state, loss_batch, k, methods, policy, generator)
        return {name: column.index_select(0, chosen.indices) for name, column in batch.items()}

    return {"topk": top_k, "selection": selection}


def seconds(run: Callable[[], object], loops: int, device: str) -> float:
    """Time one call, in seconds, as the mean over `loops`: of this thread's CPU, or of a GPU."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    start = clock()
    for _ in range(loops):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / loops


def main() -> None:
    """Print a row per batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"five methods, unbiased draw, rate {options.rate}, {options.device}, one thread")
    print(f"{'rows':>7} {'topk us':>9} {'select us':>10} {'ratio':>6} {'target':>7}")
    for b, target in TARGETS.items():
        runs = contestants(b, options.rate, options.device)
        loops = max(3, 60_000 // b)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(REPEATS):
            for name, run in runs.items():
                times[name].append(seconds(run, loops, options.device))
        ratios = [s / t for s, t in zip(times["selection"], times["topk"], strict=True)]
        topk_us, selection_us = (1e6 * statistics.median(t) for t in times.values())
        ratio = statistics.median(ratios)
        print(f"{b:>7} {topk_us:>9.1f} {selection_us:>10.1f} {ratio:>6.2f} {target:>6.0f}x")


if __name__ == "__main__":
    main()
