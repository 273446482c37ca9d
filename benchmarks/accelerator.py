"""Selection of 1,024 rows on an accelerator: time of a step, and proof that nothing waits.

With `--device cuda` the step is timed as it is and captured in a CUDA graph, and a training loop
runs with synchronisation made an error. On a CPU, the default, the same code is timed without
capture. Target on an accelerator: at most 100 µs a step, no synchronisation, emitted batches on
the device.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from adasel_stream import SelectingLoader
from adasel_stream.adaselection import step
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import DEFAULT_METHODS, resolve_methods
from adasel_stream.policies import unbiased
from adasel_stream.selection import State

ROWS, RATE, REPEATS, LOOPS = 1024, 0.3, 15, 200


def selection(device: torch.device) -> tuple[Callable[[], object], torch.Generator]:
    """Build one step over fixed losses, and give its generator."""
    losses = torch.rand(ROWS, device=device)
    methods, policy = resolve_methods(DEFAULT_METHODS), unbiased()
    generator = torch.Generator(device).manual_seed(0)
    state, k = State.initial(len(methods), device=device), int(RATE * ROWS)

    def run() -> object:
        batch = LossBatch.of(losses, all_finite=device.type == "cpu")
        return step(state, batch, k, methods, policy, generator)

    return run, generator


def captured(run: Callable[[], object], generator: torch.Generator) -> Callable[[], object]:
    """Record one step in a CUDA graph and give its replay."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def microseconds(run: Callable[[], object], device: torch.device) -> float:
    """Give the median time of a step over several repeats."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(LOOPS):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / LOOPS)
    return 1e6 * statistics.median(times)


def stream(batches: int) -> Iterator[dict[str, Tensor]]:
    """Give candidate batches from the host, pinned where they can be."""
    pin = torch.cuda.is_available()
    for _ in range(batches):
        x = torch.randn(ROWS, 64)
        y = (x.sum(1) > 0).float()
        yield {"x": x.pin_memory() if pin else x, "y": y.pin_memory() if pin else y}


def train_without_waiting(device: torch.device) -> int:
    """Train for 50 candidate batches and count emitted batches; a wait raises on a GPU."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def losses(batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["x"]).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, batch["y"], reduction="none")

    loader = SelectingLoader(
        stream(50), score=losses, model=model, sampling_rate=RATE, batch_size=256, device=device
    )
    emitted = 0
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    for batch in loader:
        assert batch["x"].device.type == device.type
        loader.mean(losses(batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        emitted += 1
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    loader.close()
    return emitted


def main() -> None:
    """Print the times and the proof."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    run, generator = selection(device)
    run()
    print(f"step of {ROWS} rows on {device}: {microseconds(run, device):.0f} us")
    if device.type == "cuda":
        replay = captured(run, generator)
        print(f"the same captured: {microseconds(replay, device):.0f} us (target 100)")
    emitted = train_without_waiting(device)
    waits = "no step waited for the device" if device.type == "cuda" else "nothing to wait for"
    print(f"trained on {emitted} emitted batches, all on {device}; {waits}")


if __name__ == "__main__":
    main()
