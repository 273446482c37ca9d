"""The evidence's tasks: what they draw, and what they say of data that is missing or damaged."""

import gzip
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch
from PIL import Image

from benchmarks.evidence.problem import DataError
from benchmarks.evidence.tasks import TASKS, images
from benchmarks.evidence.tasks.tables import DAILY

FILES = {
    "bike-daily": "bike/day.csv",
    "bike-hourly": "bike/hour.csv",
    "fashion": "fashion-mnist/train-images-idx3-ubyte.gz",
    "cifar10": "cifar10/train-000.parquet",
    "wikitext": "wikitext2/test.txt",
}
"""The first file that each task reads."""


@pytest.mark.parametrize("task", FILES)
def test_a_missing_file_is_named(tmp_path: Path, task: str) -> None:
    """Without its data a task says which file it wants, and where to read about it."""
    with pytest.raises(DataError, match=f"{FILES[task]} is missing.*README"):
        TASKS[task].make(tmp_path, 0)
    with pytest.raises(DataError, match="--data"):
        TASKS[task].make(None, 0)


DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "text": b"instant,dteday\n1,2011-01-01\n",
    "binary": bytes(range(256)) * 8,
    "gzip cut short": gzip.compress(bytes(10_000))[:-20],
    "gzip of something": gzip.compress(b"hello"),
    "gzip damaged within": gzip.compress(bytes(range(256)) * 40)[:20] + bytes(200),
    "no image": gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 0, 28, 28)),
    "Parquet cut short": b"PAR1" + bytes(100),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("task", FILES)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, task: str, damage: str) -> None:
    """Whatever is in the file, the error names it, and the file stays as it is."""
    path = tmp_path / FILES[task]
    path.parent.mkdir()
    path.write_bytes(DAMAGE[damage])
    with pytest.raises(DataError, match=path.name):
        TASKS[task].make(tmp_path, 0)
    assert path.read_bytes() == DAMAGE[damage]


def bike(path: Path, lines: Callable[[int], str], count: int = 200) -> None:
    """Write a table of bike sharing."""
    path.parent.mkdir()
    header = ",".join([*DAILY, "hr", "cnt"])
    path.write_text("\n".join([header, *map(lines, range(count))]) + "\n")


def test_a_short_row_of_bikes_is_noticed(tmp_path: Path) -> None:
    """A table that was cut within a row is damaged."""
    whole = ",".join(["1"] * (len(DAILY) + 2))
    bike(tmp_path / "bike/day.csv", lambda n: whole if n < 199 else "1,1,1")
    with pytest.raises(DataError, match=r"day\.csv"):
        TASKS["bike-daily"].make(tmp_path, 0)


def test_a_row_without_a_number_is_noticed(tmp_path: Path) -> None:
    """NaN would make every value NaN, long after it was read."""
    whole = ",".join(["1"] * (len(DAILY) + 1))
    bike(tmp_path / "bike/day.csv", lambda n: f"{whole},{'nan' if n == 7 else n}")
    with pytest.raises(DataError, match=r"day\.csv"):
        TASKS["bike-daily"].make(tmp_path, 0)


@pytest.mark.parametrize("rows", [150, 540, 732])
def test_a_table_of_another_length_is_refused(tmp_path: Path, rows: int) -> None:
    """One that was cut between rows would leave no test rows, and every value NaN."""
    bike(tmp_path / "bike/day.csv", lambda n: ",".join([str(n)] * (len(DAILY) + 2)), rows)
    with pytest.raises(DataError, match=rf"day\.csv has {rows} rows, .* has 731"):
        TASKS["bike-daily"].make(tmp_path, 0)


def idx(values: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    """Write an array as a file of the MNIST family."""
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()


def write_mnist(folder: Path, *, labels: int = 40, gzipped: bool = True) -> None:
    """Write small images of the MNIST family, the n-th of which has all pixels n."""
    pack = gzip.compress if gzipped else bytes
    end = ".gz" if gzipped else ""
    folder.mkdir(parents=True)
    pixels = np.repeat(np.arange(40, dtype=np.uint8), 784).reshape(40, 28, 28)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(pack(idx(pixels)))
        classes = (np.arange(labels) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(pack(idx(classes)))


@pytest.mark.parametrize("gzipped", [True, False])
def test_images_keep_their_labels(tmp_path: Path, gzipped: bool) -> None:
    """Gzipped or plain, every image comes with its own label, shuffled by the seed."""
    write_mnist(tmp_path / "fashion-mnist", gzipped=gzipped)
    problem = TASKS["fashion"].make(tmp_path, 0)
    pixels = (problem.train["x"] * 0.353 + 0.286) * 255
    assert torch.equal(pixels[:, 0].round() % 10, problem.train["y"].float())
    assert not torch.equal(problem.train["y"], TASKS["fashion"].make(tmp_path, 1).train["y"])


def test_images_without_a_label_each_are_refused(tmp_path: Path) -> None:
    """Files of different lengths do not belong together."""
    write_mnist(tmp_path / "fashion-mnist", labels=39)
    with pytest.raises(DataError, match="labels"):
        TASKS["fashion"].make(tmp_path, 0)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    """A file of the family with other images is not Fashion-MNIST."""
    write_mnist(tmp_path / "fashion-mnist")
    path = tmp_path / "fashion-mnist/train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((40, 8, 8), np.uint8))))
    with pytest.raises(DataError, match="28"):
        TASKS["fashion"].make(tmp_path, 0)


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    """A table of CIFAR-10's columns without pictures in it is damaged."""
    (tmp_path / "cifar10").mkdir()
    table = pa.table({"jpg": [b"no picture"] * 3, "label": [1, 2, 3]})
    pq.write_table(table, tmp_path / "cifar10/train-000.parquet")
    with pytest.raises(DataError, match=r"train-000\.parquet"):
        TASKS["cifar10"].make(tmp_path, 0)


@pytest.mark.parametrize(
    ("side", "label", "rows", "message"),
    [
        (32, 3, 4_999, "too few rows, 5,000 are expected"),
        (32, 99, 5_000, "has the label 99, expected whole numbers below 10"),
        (32, None, 5_000, "has the label None"),
        (16, 3, 5_000, "not of 32 x 32 pixels"),
    ],
)
def test_pictures_that_are_not_cifars_are_refused(
    tmp_path: Path, side: int, label: int | None, rows: int, message: str
) -> None:
    """The message names the file and what is wrong in it."""
    (tmp_path / "cifar10").mkdir()
    picture = BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(picture, "PNG")
    table = pa.table({"jpg": [picture.getvalue()] * rows, "label": [1] * (rows - 1) + [label]})
    pq.write_table(table, tmp_path / "cifar10/train-000.parquet")
    with pytest.raises(DataError, match=rf"train-000\.parquet is no whole .* {message}"):
        TASKS["cifar10"].make(tmp_path, 0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_wrong_labels_are_wrong_and_as_many_as_said(share: float) -> None:
    """The share of labels that differ is the one asked for, even over the other classes."""
    labels = torch.arange(50_000) % 10
    spoilt = images.mislabelled(labels, share, torch.Generator().manual_seed(0))
    wrong = spoilt != labels
    assert float(wrong.float().mean()) == pytest.approx(share, abs=4 * (share / 50_000) ** 0.5)
    if share:
        counts = ((spoilt - labels) % 10)[wrong].bincount(minlength=10)
        assert counts[0] == 0
        assert float(counts[1:].max() / counts[1:].min()) < 1.3


def test_the_rarest_class_is_fifty_times_rarer() -> None:
    """The tail is long and falls class by class, by the factor from first to last."""
    labels = torch.arange(50_000) % 10
    counts = labels[images.with_rare(labels, 50.0)].bincount()
    assert counts[0] == 5_000
    assert counts[9] == 100
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)


def test_the_line_has_outliers_in_training_only() -> None:
    """The test points lie on y = 2x + 1 up to small noise; one in twenty to train on is far off."""
    problem = TASKS["line"].make(None, 0)
    off = [(rows["y"] - 2 * rows["x"][:, 0] - 1).abs() for rows in (problem.train, problem.test)]
    assert len(off[0]) == 10_000
    assert len(off[1]) == 5_000
    assert off[1].max() < 0.6
    assert 0.02 < float((off[0] > 0.6).float().mean()) < 0.06


def test_clicks_are_rare_and_drift() -> None:
    """About 3 % are clicks all along, and what says so early says the contrary late."""
    rows = TASKS["click"].make(None, 0).train
    tenth = len(rows["y"]) // 10
    slopes: list[torch.Tensor] = []
    for part in (slice(0, tenth), slice(-tenth, None)):
        x, y = rows["x"][part, 1:20], rows["y"][part]
        assert 0.01 < float(y.mean()) < 0.06
        slopes.append(x[y == 1].mean(0))
    assert float(torch.cosine_similarity(slopes[0], slopes[1], dim=0)) < -0.5


@pytest.mark.parametrize("task", ["line", "click"])
def test_a_seed_makes_the_same_problem(task: str) -> None:
    """The same seed gives the same rows, another seed others."""
    one, again, other = (TASKS[task].make(None, seed).train["y"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_every_task_says_what_its_published_values_are_of() -> None:
    """Where the paper's values stand beside ours, a sentence says what differs."""
    for task in TASKS.values():
        assert not task.published or task.note
