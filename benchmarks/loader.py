"""Throughput of `SelectingLoader` over a source, beside the same source without selection.

Columns: Parquet shards of image-like rows (3 KB in one column), of a table (48 scalar columns) and,
the hardest case, of 16 floats in one column, read by `ParquetSource`. Tar: the same images as
webdataset reads them, decoded and batched. The losses are a column, so that what is measured is
the loader and not a model; rate 0.2, policy `unbiased`, five methods.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
import webdataset  # type: ignore[import-untyped]  # ships no types

from adasel_connectors.parquet import ParquetSource
from adasel_stream import SelectingLoader

RATE = 0.2
REPEATS = 7


def write_parquet(folder: Path, rows: int, width: int, kind: str) -> None:
    """Write four shards of `rows` rows in all, `width` values each."""
    random = np.random.default_rng(0)
    for shard in range(4):
        n = rows // 4
        values = (
            random.integers(0, 256, n * width, dtype=np.uint8)
            if kind == "image"
            else random.random(n * width, dtype=np.float32)
        )
        columns = {
            "y": pa.array(random.integers(0, 10, n)),
            "loss": pa.array(random.random(n, dtype=np.float32)),
        }
        if kind == "table":
            columns |= {f"x{i}": pa.array(values[i * n : (i + 1) * n]) for i in range(width)}
        else:
            columns["x"] = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
        pq.write_table(
            pa.table(columns),
            folder / f"{shard}.parquet",
            row_group_size=8192,
            compression="none",
            use_dictionary=False,
        )


def write_tar(path: Path, rows: int) -> None:
    """Write one shard of raw 3 KB arrays with a label."""
    random = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for row in range(rows):
            image = random.integers(0, 256, 3072, dtype=np.uint8).tobytes()
            for name, data in (
                (f"{row:06d}.bin", image),
                (f"{row:06d}.cls", str(row % 10).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def with_raw_pixels(sample: dict[str, Any]) -> dict[str, Any]:
    """Decode one webdataset sample without webdataset's own decoders."""
    image = np.frombuffer(sample["bin"], dtype=np.uint8)
    return {"x": image, "y": int(sample["cls"]), "loss": np.float32(image[0])}


def rate_of(batches: Iterable[Any], rows: int) -> float:
    """Give source rows per second of this thread's CPU while `batches` are drained."""
    start = time.thread_time()
    for _ in batches:
        pass
    return rows / (time.thread_time() - start)


def selecting(source: Iterable[Any]) -> Iterator[Any]:
    """Wrap a source; the loss is a column of the batch."""
    return iter(
        SelectingLoader(source, score=lambda b: torch.as_tensor(b["loss"]), sampling_rate=RATE)
    )


def compare(name: str, source: Callable[[], Iterable[Any]], rows: int, target: float) -> None:
    """Print the rates with and without selection and their ratio, medians of paired runs."""
    plain, chosen = [], []
    for _ in range(REPEATS):
        plain.append(rate_of(source(), rows))
        chosen.append(rate_of(selecting(source()), rows))
    ratio = statistics.median(c / p for c, p in zip(chosen, plain, strict=True))
    rates = f"{statistics.median(plain):>12,.0f} {statistics.median(chosen):>12,.0f}"
    print(f"{name:<34} {rates} {ratio:>6.2f} {target:>7.2f}")


def main() -> None:
    """Print a row per source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=131_072)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    print(f"rate {RATE}, rows/s of CPU time, one thread, medians of {REPEATS}")
    print(f"{'source':<34} {'alone':>12} {'selecting':>12} {'ratio':>6} {'target':>7}")
    with tempfile.TemporaryDirectory() as scratch:
        for kind, width in (("image", 3072), ("table", 48), ("row", 16)):
            folder = Path(scratch) / kind
            folder.mkdir()
            write_parquet(folder, rows, width, kind)
            for size in (256, 1024, 4096, 16384):
                compare(
                    f"Parquet columns, {kind}, batch {size}",
                    lambda folder=folder, size=size: ParquetSource(folder, batch_size=size),  # type: ignore[misc]
                    rows,
                    0.6,
                )
        shard, tar_rows = Path(scratch) / "shard.tar", rows // 16
        write_tar(shard, tar_rows)

        def pipeline() -> Iterable[Any]:
            dataset = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
            return dataset.map(with_raw_pixels).batched(256, partial=False)  # type: ignore[no-any-return]

        compare("webdataset, image, batch 256", pipeline, tar_rows, 0.98)


if __name__ == "__main__":
    main()
