"""What it costs a training step to be listened to, and to learn from what was heard.

Networks of three layers, 64 or 1,024 wide, batches of 64 and 1,024 rows. A step is forward pass,
`weighted_mean`, backward pass and SGD. Beside it the same step with `watch_norms`, and with the
curve learning from the norms as well; a loader does so in one batch of four. Medians of rounds in
which the three take turns, in processor time of one thread.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adasel_stream.backward import watch_norms
from adasel_stream.emitted import weighted_mean
from adasel_stream.expected_norms import NormCurve, with_trained
from adasel_stream.selection import Feedback

ROUNDS = 15
STEPS = 20


def step_of(width: int, rows: int, *, listen: bool, learn: bool) -> Callable[[], None]:
    """Make a training step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y, weights = torch.randn(rows, 64), torch.randint(10, (rows,)), torch.ones(rows)
    curve = NormCurve.initial()

    def hear(norms: Tensor | None) -> None:
        nonlocal curve
        if learn and norms is not None:
            even = (weights[:, None], weights, weights)
            curve = with_trained(curve, Feedback(norms, *even, weights > 0, norms, norms))

    def step() -> None:
        losses = cross_entropy(model(x), y, reduction="none")
        mean = weighted_mean(losses, weights)
        if listen:
            watch_norms(losses, hear)
        mean.backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Time some steps."""
    began_s = time.process_time()
    for _ in range(STEPS):
        step()
    return time.process_time() - began_s


def main() -> None:
    """Print a row for each width and batch size."""
    torch.set_num_threads(1)
    print(f"{'width':>6}{'rows':>6}{'step':>10}{'heard':>8}{'learnt':>8}{'one in four':>13}")
    for width in (64, 1024):
        for rows in (64, 1024):
            kinds = ((False, False), (True, False), (True, True))
            steps = [step_of(width, rows, listen=a, learn=b) for a, b in kinds]
            times = [[seconds(step) for step in steps] for _ in range(ROUNDS)]
            heard = statistics.median(own[1] / own[0] for own in times)
            learnt = statistics.median(own[2] / own[0] for own in times)
            step_ms = 1e3 * statistics.median(own[0] for own in times) / STEPS
            print(f"{width:>6}{rows:>6}{step_ms:>7.2f} ms{heard:>7.2f}x{learnt:>7.2f}x", end="")
            print(f"{1 + (learnt - 1) / 4:>12.3f}x", flush=True)


if __name__ == "__main__":
    main()
