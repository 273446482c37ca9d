"""Fashion-MNIST, clean, with wrong labels and with rare classes, and CIFAR-10."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.evidence.problem import DataError, Problem, Task, file_of, generator
from benchmarks.evidence.tasks.networks import accuracy, class_losses, perceptron

__all__ = ["CIFAR10", "FASHION"]

CLASSES = 10
KEPT_ASIDE = 5_000

IMAGES = 5_000
"""Images in each file of CIFAR-10, at least."""


@lru_cache(maxsize=8)
def idx(path: Path) -> Tensor:
    """Read a file of the MNIST family, gzipped or plain, as uint8.

    Raises:
        DataError: it is another file, or cut short.
    """
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        kind, dimensions = raw[2], raw[3]
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, struct.error, zlib.error) as error:
        raise DataError(f"{path} is no whole file of the MNIST family: {error}") from error
    if not values.size:
        raise DataError(f"{path} holds nothing, its shape is {shape}")
    if kind != 8:
        raise DataError(f"{path} holds values of kind {kind}, expected 8, unsigned bytes")
    return torch.from_numpy(values.copy())


def fashion_files(data: Path | None, part: str) -> tuple[Tensor, Tensor]:
    """Find images, scaled to mean 0 and deviation 1, (n, 784), and labels, int64.

    Raises:
        DataError: the files are missing, damaged, or do not belong together.
    """
    path = first_of(data, f"{part}-images-idx3-ubyte")
    images, labels = idx(path), idx(first_of(data, f"{part}-labels-idx1-ubyte"))
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max() >= CLASSES:
        raise DataError(
            f"{path} has images of shape {tuple(images.shape)} and beside it labels of shape "
            f"{tuple(labels.shape)}, expected n images of 28 x 28 and n labels below {CLASSES}"
        )
    return (images.flatten(1).float() / 255 - 0.286) / 0.353, labels.long()


def first_of(data: Path | None, name: str) -> Path:
    """Find a file with or without .gz."""
    try:
        return file_of(data, "fashion-mnist", name)
    except DataError:
        return file_of(data, "fashion-mnist", f"{name}.gz")


def mislabelled(labels: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Give a share of the rows one of the other labels."""
    wrong = torch.rand(len(labels), generator=random) < share
    others = (labels + torch.randint(1, CLASSES, labels.shape, generator=random)) % CLASSES
    return torch.where(wrong, others, labels)


def with_rare(labels: Tensor, factor: float) -> Tensor:
    """Choose rows so that the last class is `factor` times rarer than the first."""
    kept = [
        where[: int(len(where) * factor ** (-label / (CLASSES - 1)))]
        for label in range(CLASSES)
        for where in [(labels == label).nonzero()[:, 0]]
    ]
    return torch.cat(kept)


def problem_of(
    images: tuple[Tensor, Tensor],
    tests: tuple[Tensor, Tensor],
    network: Callable[[], nn.Module],
    seed: int,
    *,
    wrong: float = 0.0,
    rare: float = 1.0,
) -> Problem:
    """Spoil labels as asked, and keep a part of the rows aside for a reference model."""
    random = generator(seed)
    x, y = images
    order = torch.randperm(len(y), generator=random)
    if rare > 1:
        order = order[with_rare(y[order], rare)]
        order = order[torch.randperm(len(order), generator=random)]
    y = mislabelled(y, wrong, random)
    aside, kept = order.tensor_split([min(KEPT_ASIDE, len(order) // 10)])
    return Problem(
        train={"x": x[kept], "y": y[kept]},
        test={"x": tests[0], "y": tests[1]},
        reference={"x": x[aside], "y": y[aside]},
        network=network,
        losses=class_losses,
        quality=accuracy,
    )


def fashion(data: Path | None, seed: int, *, wrong: float = 0.0, rare: float = 1.0) -> Problem:
    """Make the problem of Fashion-MNIST; MNIST's own files fit as well."""
    train, test = fashion_files(data, "train"), fashion_files(data, "t10k")
    network = partial(perceptron, 784, 64, CLASSES)
    return problem_of(train, test, network, seed, wrong=wrong, rare=rare)


@lru_cache(maxsize=2)
def cifar_files(data: Path | None, part: str, files: int) -> tuple[Tensor, Tensor]:
    """Decode images of CIFAR-10 to 16 x 16 pixels, (n, 3, 16, 16), and labels."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types
    from PIL import Image

    images, labels = [], []
    for number in range(files):
        path = file_of(data, "cifar10", f"{part}-{number:03d}.parquet")
        try:
            table = pq.read_table(path, columns=["jpg", "label"])
            for raw in table["jpg"].to_pylist():
                with Image.open(io.BytesIO(raw)) as image:
                    images.append(np.asarray(image.convert("RGB").reduce(2)))
            labels += table["label"].to_pylist()
            _check_cifar(images, labels, (number + 1) * IMAGES)
        except Exception as error:  # whatever a damaged file makes a decoder raise
            raise DataError(f"{path} is no whole part of CIFAR-10: {error}") from error
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (x - 0.47) / 0.25, torch.tensor(labels)


def _check_cifar(images: list[npt.NDArray[np.uint8]], labels: list[Any], least: int) -> None:
    """Make sure that pictures and labels are CIFAR-10's.

    Raises:
        ValueError: they are others, or fewer than `least`.
    """
    if len(labels) < least:
        raise ValueError(f"it has too few rows, {IMAGES:,} are expected in each file")
    if {image.shape for image in images} != {(16, 16, 3)}:
        raise ValueError("some images are not of 32 x 32 pixels")
    wrong = [label for label in labels if label not in range(CLASSES)]
    if wrong:
        raise ValueError(f"it has the label {wrong[0]!r}, expected whole numbers below {CLASSES}")


class Convolutions(nn.Sequential):
    """Two convolutions and a linear head."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 16, CLASSES)),
        )


def cifar10(data: Path | None, seed: int) -> Problem:
    """Make the problem of CIFAR-10, a fifth of its images at half their size."""
    train, test = cifar_files(data, "train", 2), cifar_files(data, "test", 1)
    return problem_of(train, test, Convolutions, seed)


PUBLISHED = {
    **{"full": 92.57, "paper": 89.39, "uniform": 90.74, "big_loss": 92.25},
    **{"small_loss": 91.04, "adaboost": 85.13, "gradient_norm": 91.97},
    **{"coresets_1": 84.67, "coresets_2": 84.29},
}

FASHION = tuple(
    Task(
        name=name,
        make=partial(fashion, wrong=wrong, rare=rare),
        measure="accuracy",
        better="higher",
        kind="epochs",
        batch_size=64,
        updates=2000,
        learning_rate=0.05,
    )
    for name, wrong, rare in (
        ("fashion", 0.0, 1.0),
        ("fashion-10-wrong", 0.1, 1.0),
        ("fashion-20-wrong", 0.2, 1.0),
        ("fashion-rare", 0.0, 50.0),
    )
)

CIFAR10 = Task(
    name="cifar10",
    make=cifar10,
    measure="accuracy",
    better="higher",
    kind="epochs",
    batch_size=64,
    updates=1500,
    learning_rate=0.05,
    published=PUBLISHED,
    note="two convolutions on 10,000 images of 16 x 16 here, ResNet18 on all there",
)
