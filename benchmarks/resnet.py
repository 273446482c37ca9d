"""CIFAR-10 with ResNet-18 at the paper's settings, for a machine with an accelerator.

Batches of 128 and SGD at 0.01 with momentum 0.9, as Table 3 says; the learning rate falls to 0 by a
cosine within the updates of each contestant, who all see every image once an epoch. Full training
trains on all of them, uniform sampling on a share drawn evenly, the others on as many that they
choose. A row for each contestant and rate: accuracy on the test images over the seeds, with its
standard error, and wall time beside full training's in the same run. On a CPU `--images 256
--epochs 1` shows that it runs.
"""

import argparse
import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from adasel_stream import SelectingLoader
from benchmarks.evidence.contestants import CONTESTANTS

BATCH_SIZE, LEARNING_RATE, MOMENTUM = 128, 0.01, 0.9
NAMES = ("uniform", "auto", "unbiased", "aligned", "paper", "big_loss", "gradient_norm")

Images = dict[str, Tensor]


class Block(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride)
        self.second = convolution(outputs, outputs, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            one = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(one, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Give features, (b, outputs, height/stride, width/stride)."""
        return relu(self.second(relu(self.first(x))) + self.shortcut(x))


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolve over 3 x 3 pixels, and normalise."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def resnet18() -> nn.Sequential:
    """Build ResNet-18 as for images of 32 x 32: a stem of 3 x 3 pixels and no pooling after it.

    Source: He et al. 2016, section 4.2 for the stem and Table 1 for the rest.
    """
    parts: list[nn.Module] = [convolution(3, 64, 1), nn.ReLU()]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        parts += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def read(folder: Path, part: str, images: int | None, device: torch.device) -> Images:
    """Decode up to so many images, (n, 3, 32, 32), and labels, from `part`-*.parquet."""
    paths = sorted((folder / "cifar10").glob(f"{part}-*.parquet"))
    if not paths:
        raise SystemExit(f"{folder / 'cifar10'} has no {part}-*.parquet; see benchmarks/evidence")
    pixels, labels = [], []
    for path in paths:
        table = pq.read_table(path, columns=["jpg", "label"])
        for raw in table["jpg"].to_pylist():
            with Image.open(io.BytesIO(raw)) as image:
                pixels.append(np.asarray(image.convert("RGB")))
        labels += table["label"].to_pylist()
    x = torch.from_numpy(np.stack(pixels[:images])).permute(0, 3, 1, 2).float() / 255
    return {"x": ((x - 0.47) / 0.25).to(device), "y": torch.tensor(labels[:images]).to(device)}


def candidates(train: Images, epochs: int, seed: int) -> Iterator[Images]:
    """Give every image once an epoch, in batches, at random and flipped at random."""
    device = train["x"].device
    random = torch.Generator(device).manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(train["y"]), generator=random, device=device)
        for rows in torch.split(order, BATCH_SIZE):
            flipped = torch.rand(len(rows), 1, 1, 1, generator=random, device=device) < 0.5
            x = train["x"][rows]
            yield {"x": torch.where(flipped, x.flip(-1), x), "y": train["y"][rows]}


def evenly(source: Iterator[Images], rate: float, seed: int) -> Iterator[Images]:
    """Draw a share of each batch evenly, and put full batches together."""
    waiting: list[Images] = []
    random = torch.Generator().manual_seed(seed)
    for batch in source:
        rows = torch.randperm(len(batch["y"]), generator=random)
        rows = rows[: round(rate * len(rows))].to(batch["y"].device)
        waiting.append({name: column[rows] for name, column in batch.items()})
        if sum(len(one["y"]) for one in waiting) >= BATCH_SIZE:
            joined = {name: torch.cat([one[name] for one in waiting]) for name in batch}
            yield {name: column[:BATCH_SIZE] for name, column in joined.items()}
            waiting = [{name: column[BATCH_SIZE:] for name, column in joined.items()}]


def run(name: str, rate: float, epochs: int, seed: int, data: tuple[Images, Images]) -> list[float]:
    """Train once, and give accuracy in percent and wall seconds."""
    train, test = data
    device = train["x"].device
    torch.manual_seed(seed)
    model = resnet18().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    updates = max(1, int(rate * epochs * math.ceil(len(train["y"]) / BATCH_SIZE)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)

    def losses_of(batch: Images) -> Tensor:
        return cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    source = candidates(train, epochs, seed)
    mean: Callable[[Tensor], Tensor] = Tensor.mean
    batches: Iterator[Images] = source
    if name == "uniform":
        batches = evenly(source, rate, seed)
    elif name != "full":
        who = CONTESTANTS[name]
        loader = SelectingLoader(
            source,
            score=losses_of,
            model=model,
            sampling_rate=rate,
            policy=who.policy(),
            methods=None if who.methods is None else list(who.methods),
            batch_size=BATCH_SIZE,
            device=device,
            seed=seed,
        )
        mean, batches = loader.mean, iter(loader)
    began_s = time.perf_counter()
    for _, batch in zip(range(updates), batches, strict=False):
        optimizer.zero_grad()
        mean(losses_of(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()
        schedule.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began_s
    model.eval()
    with torch.no_grad():
        parts = zip(*(torch.split(test[name], 500) for name in ("x", "y")), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    return [100 * right / len(test["y"]), seconds]


def main() -> None:
    """Print a row for each contestant and rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="as of benchmarks.evidence")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, help="use so many only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    train, test = (read(options.data, part, options.images, device) for part in ("train", "test"))
    print(f"{device}: {len(train['y'])} images, {options.epochs} epochs, {options.seeds} seeds")
    print(f"{'contestant':<16}{'rate':>6}{'accuracy %':>12}{'error':>8}{'time of full':>14}")
    whole_s = math.nan
    pairs = [("full", 1.0), *((name, r) for r in options.rates for name in options.contestants)]
    for name, rate in pairs:
        runs = [
            run(name, rate, options.epochs, seed, (train, test)) for seed in range(options.seeds)
        ]
        accuracies, seconds = zip(*runs, strict=True)
        error = math.nan
        if len(runs) > 1:
            error = statistics.stdev(accuracies) / math.sqrt(len(runs))
        median_s = statistics.median(seconds)
        whole_s = median_s if name == "full" else whole_s
        print(f"{name:<16}{rate:>6}{statistics.fmean(accuracies):>12.2f}{error:>8.2f}", end="")
        print(f"{median_s / whole_s:>14.2f}", flush=True)


if __name__ == "__main__":
    main()
