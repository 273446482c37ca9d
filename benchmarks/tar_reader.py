"""Compare TarSource with webdataset on the same shards: samples a second, as a ratio.

Samples are an image-like part of about 3 KB of random bytes and a label of up to 3 digits. They
are written once by webdataset's own writer, which puts a pax header before each file, and once
as plain ustar. Both readers give raw bytes in batches of 256; webdataset's pipeline is
`WebDataset(...).to_tuple("__key__", "jpg", "cls").batched(256)`, and once without batches. All
contestants of a repeat run one after another; the ratio is taken within it.

Run: `python benchmarks/tar_reader.py`, with the `webdataset` extra installed.
"""

import io
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import webdataset as wds  # type: ignore[import-untyped]  # webdataset ships no types

from adasel_connectors.manifest import write_manifest
from adasel_connectors.shards import mapped
from adasel_connectors.tar import TarSource
from adasel_connectors.tar_samples import Limits, Samples
from adasel_connectors.tar_walk import walk

SHARDS, SAMPLES, BATCH_SIZE, REPEATS = 4, 2048, 256, 7
TARGET = 8.0
EXTENSIONS = ("jpg", "cls")


def write_shards(folder: Path, *, pax: bool) -> None:
    """Write the shards, by webdataset's writer or as plain ustar."""
    rng = random.Random(0)
    for shard in range(SHARDS):
        path = folder / f"{shard:03d}.tar"
        samples = (
            (f"{shard}{i:07d}", rng.randbytes(rng.randint(2500, 3500)), b"%d" % rng.randrange(1000))
            for i in range(SAMPLES)
        )
        if pax:
            with wds.TarWriter(str(path)) as writer:
                for key, image, label in samples:
                    writer.write({"__key__": key, "jpg": image, "cls": label})
        else:
            write_ustar(path, samples)


def write_ustar(path: Path, samples: Iterable[tuple[str, bytes, bytes]]) -> None:
    """Write one shard without pax headers."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, *parts in samples:
            for extension, content in zip(EXTENSIONS, parts, strict=True):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def contestants(folder: Path) -> dict[str, Callable[[], int]]:
    """Give, by name, functions that read all shards once and count samples."""
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    manifest = write_manifest(folder)

    def theirs() -> Any:
        return wds.WebDataset(paths, shardshuffle=False).to_tuple("__key__", *EXTENSIONS)

    def ours(**options: Any) -> int:
        source = TarSource(folder, extensions=EXTENSIONS, batch_size=BATCH_SIZE, **options)
        return sum(len(batch["id"]) for batch in source)

    raw = {"cls": None}
    return {
        "webdataset, batched": lambda: sum(len(keys) for keys, *_ in theirs().batched(BATCH_SIZE)),
        "webdataset, sample by sample": lambda: sum(1 for _ in theirs()),
        "TarSource, raw bytes": lambda: ours(decoders=raw),
        "TarSource, classes decoded": ours,
        "TarSource, sha256 verified": lambda: ours(decoders=raw, manifest=manifest),
        "  headers only": lambda: each_shard(paths, lambda view: sum(1 for _ in walk(view)) // 2),
        "  headers and grouping": lambda: each_shard(paths, count_samples),
    }


def each_shard(paths: list[str], count: Callable[[Any], int]) -> int:
    """Add up a count over mapped shards."""
    total = 0
    for path in paths:
        with mapped(path) as view:
            total += count(view)
    return total


def count_samples(view: Any) -> int:
    """Group and copy the parts of all samples."""
    columns = {name.encode(): i for i, name in enumerate(EXTENSIONS)}
    return sum(1 for _ in Samples(view, columns, Limits(1 << 26, 1 << 28)))


def measure(folder: Path) -> None:
    """Run all contestants in turn, and print medians and ratios."""
    runs = contestants(folder)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, REPEATS):  # the first warms the page cache
        for name, read in runs.items():
            started = time.perf_counter()
            count = read()
            elapsed = time.perf_counter() - started
            if count != SHARDS * SAMPLES:
                raise SystemExit(f"{name} gave {count} of {SHARDS * SAMPLES} samples")
            if repeat >= 0:
                seconds[name].append(elapsed / count)
    base = seconds["webdataset, batched"]
    for name, times in seconds.items():
        ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
        target = f"  target {TARGET:.0f}" if name == "TarSource, raw bytes" else ""
        median = statistics.median(times)
        print(f"  {name:30s} {median * 1e6:8.1f} {1e-3 / median:12.1f} {ratio:7.1f}{target}")


def main() -> None:
    """Measure on both kinds of shards."""
    torch.set_num_threads(1)
    for pax, title in ((True, "shards of webdataset's writer"), (False, "plain ustar shards")):
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), pax=pax)
            print(f"{title}: {SHARDS} x {SAMPLES} samples, batches of {BATCH_SIZE}")
            print(f"  {'':30s} {'µs/sample':>9s} {'1,000/s':>11s} {'ratio':>7s}")
            measure(Path(folder))


if __name__ == "__main__":
    main()
