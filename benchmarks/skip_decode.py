"""What it saves not to read and decode what is not chosen: candidates a second, as a ratio.

One candidate in ten is chosen, at random, as a stand-in for a record of losses that takes no
time. A pipeline that decodes every candidate and keeps the chosen ones runs against one whose
source defers the wide column, fetches it for the chosen rows and decodes those. Both must hand
over the same samples. Both run one after another in each repeat; the ratio is taken within it,
in CPU time of one thread, so that neighbours on a shared machine disturb it less.

Tar shards hold JPEG pictures of 128 to 256 pixels a side, decoded by Pillow. Parquet shards hold
bytes of 3, 12 and 48 KB and vectors of 768 and 3,072 floats beside two narrow columns, in row
groups of 1,000 and 10,000; nothing is done with the bytes but to hand them over. The wide column
is stored without compression and dictionary, as `ParquetSource` recommends for it, and once as
Arrow does by default; the target holds for the former.

Lines that begin with "loader" are the whole way: `SelectingLoader` chooses by a record that knows
every loss, over a source that decodes everything and over one that defers. There pictures are
scaled to 96 pixels a side, so that batches can be stacked, and candidates of tables come in
batches of 4,096, as sources of cheap rows are best read.

Run: `python benchmarks/skip_decode.py`; with `--parquet-images FOLDER` the pictures are the
`jpg` column of Parquet files.
"""

import argparse
import contextlib
import io
import logging
import random
import statistics
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from adasel_connectors.parquet import ParquetSource
from adasel_connectors.source import ShardSource
from adasel_connectors.tar import TarSource
from adasel_stream import Decoding, LossRecord, SelectingLoader

_RATE = 0.1
_BATCH = 256
_LARGE_BATCH = 4096
_SHARDS = 2
_TAR_TARGET, _PARQUET_TARGET = 6.0, 3.0
_RECOMMENDED = {"compression": {"y": "snappy", "z": "snappy"}, "use_dictionary": ["y"]}

Make: TypeAlias = Callable[..., ShardSource]
"""Makes a source over the same shards that defers the columns it is given."""


def decode_jpeg(part: bytes) -> Tensor:
    """Decode a picture, uint8, shape (height, width, 3)."""
    with Image.open(io.BytesIO(part)) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB")))


def draw_jpeg(rng: random.Random) -> bytes:
    """Draw shapes on a shaded ground, 128 to 256 pixels a side."""
    width, height = rng.randint(128, 256), rng.randint(128, 256)
    ground = Image.linear_gradient("L").resize((width, height))
    shades = [rng.random() for _ in range(3)]
    picture = Image.merge("RGB", [ground.point(lambda v, a=a: v * a) for a in shades])
    pen = ImageDraw.Draw(picture)
    for _ in range(24):
        x, y, size = rng.randrange(width), rng.randrange(height), rng.randint(5, 60)
        colour = tuple(rng.randrange(256) for _ in range(3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((x, y, x + size, y + size), colour)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=90)
    return content.getvalue()


def stored_jpegs(folder: Path) -> Iterator[bytes]:
    """Read pictures from the `jpg` column of Parquet files."""
    for path in sorted(folder.glob("*.parquet")):
        yield from pq.read_table(path, columns=["jpg"])["jpg"].to_pylist()


def write_tars(folder: Path, pictures: list[bytes]) -> None:
    """Write pictures with a class each into shards."""
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for i, picture in enumerate(pictures[shard::_SHARDS]):
                for extension, content in (("jpg", picture), ("cls", b"%d" % (i % 10))):
                    member = tarfile.TarInfo(f"{shard}{i:07d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def draw_choices() -> list[Tensor]:
    """Draw rows of full batches beforehand, so that the choice takes no time."""
    generator = torch.Generator().manual_seed(0)
    keep = round(_RATE * _BATCH)
    drawn = (torch.randperm(_BATCH, generator=generator) for _ in range(64))
    return [rows[:keep].sort().values for rows in drawn]


_CHOICES = draw_choices()


def chosen_rows(batches: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Give each batch and a tenth of its rows: the same rows for all contestants."""
    for batch, chosen in zip(batches, cycle(_CHOICES), strict=False):
        rows = len(batch["id"])
        yield batch, chosen if rows == _BATCH else chosen[chosen < rows]


def decode_all(source: ShardSource, name: str) -> Iterator[Sequence[Any]]:
    """Have the wide column of every row, and hand over that of the chosen ones."""
    for batch, chosen in chosen_rows(source):
        column = batch[name]
        tensor = isinstance(column, Tensor)
        yield column[chosen] if tensor else [column[i] for i in chosen.tolist()]


def decode_chosen(source: ShardSource, name: str) -> Iterator[Sequence[Any]]:
    """Have references to the wide column, and hand over what they refer to."""
    for batch, chosen in chosen_rows(source):
        yield source.fetch({name: batch[name][chosen]})[name]


def check(title: str, name: str, make: Make) -> None:
    """Stop where the two do not hand over the same samples."""
    pairs = zip(decode_all(make(), name), decode_chosen(make(name), name), strict=True)
    for theirs, ours in pairs:
        for a, b in zip(theirs, ours, strict=True):
            if not (torch.equal(a, b) if isinstance(a, Tensor) else a == b):
                raise SystemExit(f"{title}: the two did not hand over the same samples")


def compare(title: str, name: str, make: Make, *, target: float | None, repeats: int) -> None:
    """Run both in turn, and print medians and the ratio.

    Args:
        title: of the line.
        name: of the wide column.
        make: makes a source over the same shards that defers the columns it is given.
        target: for the ratio.
        repeats: timed runs of each.
    """
    check(title, name, make)  # and warm the page cache
    times: list[list[float]] = []
    for _ in range(repeats):
        times.append([])
        for run, source in ((decode_all, make()), (decode_chosen, make(name))):
            started_s = time.thread_time()
            deque(run(source, name), maxlen=0)
            times[-1].append(time.thread_time() - started_s)
    ratio = statistics.median(a / b for a, b in times)
    candidates = source.counts["samples"]
    rates = [candidates / statistics.median(column) for column in zip(*times, strict=True)]
    beside = "" if target is None else f"{target:7.0f}"
    print(f"{title:57s} {rates[0]:9,.0f} {rates[1]:9,.0f} {ratio:6.1f}{beside}")


def decode_thumbnail(part: bytes) -> Tensor:
    """Decode a picture to a size that stacks, uint8, shape (96, 96, 3)."""
    with Image.open(io.BytesIO(part)) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB").resize((96, 96))))


def select(make: Make, column: str, *deferred: str) -> float:
    """Select a tenth of a source by a record that knows all of it; return CPU seconds."""
    record, random_losses = LossRecord(1 << 17, engine="numpy"), np.random.default_rng(0)
    for batch in make(column):
        record.update(batch["id"].numpy(), random_losses.random(len(batch["id"])))
    with SelectingLoader(
        make(*deferred),
        record=record,
        ids="id",
        sampling_rate=_RATE,
        batch_size=_BATCH // 4,
        decode=Decoding(None, workers=0) if deferred else None,
    ) as loader:
        started_s = time.thread_time()
        deque(loader, maxlen=0)
        return time.thread_time() - started_s


def compare_loaders(title: str, column: str, make: Make, *, target: float, repeats: int) -> None:
    """Run loaders over both kinds of source in turn, and print medians and the ratio."""
    with contextlib.redirect_stderr(io.StringIO()):  # the loader tells its cost each time
        times = [(select(make, column), select(make, column, column)) for _ in range(repeats)]
    ratio = statistics.median(a / b for a, b in times)
    candidates = sum(len(batch["id"]) for batch in make(column))
    rates = [candidates / statistics.median(each) for each in zip(*times, strict=True)]
    print(f"{'loader, ' + title:57s} {rates[0]:9,.0f} {rates[1]:9,.0f} {ratio:6.1f}{target:7.0f}")


def measure_tars(pictures: list[bytes], repeats: int) -> None:
    """Compare over tar shards of pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder, pictures)

        def source(*deferred: str, decode: Callable[[bytes], Tensor] = decode_jpeg) -> TarSource:
            return TarSource(
                folder,
                extensions=("jpg", "cls"),
                deferred=deferred,
                decoders={"jpg": decode},
                batch_size=_BATCH,
            )

        size = sum(map(len, pictures)) / len(pictures)
        title = f"tar, {len(pictures):,} JPEG of {size / 1000:.1f} KB"
        compare(title, "jpg", source, target=_TAR_TARGET, repeats=repeats)
        small = partial(source, decode=decode_thumbnail)
        compare_loaders(title, "jpg", small, target=_TAR_TARGET, repeats=repeats)


def wide_columns(rows: int) -> Iterator[tuple[str, Any]]:
    """Make wide columns that do not compress, like pictures and embeddings."""
    rng = np.random.default_rng(0)
    for size, count in ((3_000, rows), (12_000, rows), (48_000, rows // 4)):
        sizes = rng.integers(size * 4 // 5, size * 6 // 5, count)
        yield f"{size // 1000} KB of bytes", pa.array([rng.bytes(int(s)) for s in sizes])
    for width in (768, 3072):
        numbers = pa.array(rng.random(rows * width, dtype=np.float32))
        yield f"{width:,} floats", pa.FixedSizeListArray.from_arrays(numbers, width)


def measure_tables(rows: int, repeats: int) -> None:
    """Compare over Parquet shards with one wide column."""
    for title, column in wide_columns(rows):
        number = np.arange(len(column))
        table = pa.table({"y": number % 10, "z": number / 7, "x": column})
        for group in (1_000, 10_000):
            name = f"Parquet, {title}, groups of {group:,}"
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "0.parquet"
                pq.write_table(table, path, row_group_size=group, **_RECOMMENDED)
                compare_table(name, path, target=_PARQUET_TARGET, repeats=repeats)
                pq.write_table(table, path, row_group_size=group)
                compare_table(f"{name}, as by default", path, target=None, repeats=repeats)


def compare_table(title: str, path: Path, *, target: float | None, repeats: int) -> None:
    """Compare over one Parquet shard."""

    def source(*deferred: str, batch_size: int = _BATCH) -> ParquetSource:
        return ParquetSource(path, deferred=deferred, batch_size=batch_size)

    compare(title, "x", source, target=target, repeats=repeats)
    if target is not None:
        large = partial(source, batch_size=_LARGE_BATCH)
        compare_loaders(title, "x", large, target=target, repeats=repeats)


def main() -> None:
    """Print one line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1_000, help="in tar shards")
    parser.add_argument("--rows", type=int, default=20_000, help="of each Parquet table")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved")
    parser.add_argument("--parquet-images", type=Path, metavar="FOLDER", help="take pictures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("adasel_connectors").setLevel(
        logging.ERROR
    )  # the default layout is warned of
    print(
        f"{'candidates/s, one in ten chosen':57s} {'all':>9s} {'chosen':>9s} {'ratio':>6s} target"
    )
    if options.parquet_images:
        pictures = list(stored_jpegs(options.parquet_images))[: options.pictures]
    else:
        rng = random.Random(0)
        pictures = [draw_jpeg(rng) for _ in range(options.pictures)]
    measure_tars(pictures, options.repeats)
    measure_tables(options.rows, options.repeats)


if __name__ == "__main__":
    main()
