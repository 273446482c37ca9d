"""Tar and Parquet shards whose wide column is read for chosen rows only, through a loader."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from torch.utils.data import DataLoader

from adasel_connectors import ParquetSource, TarSource
from adasel_connectors.chunks import as_it_is
from adasel_stream import Decoding, LossRecord, SelectingLoader, load_checkpoint, save_checkpoint
from tests.connectors.shard_files import write_tar

ROWS = 60


def content(number: int) -> bytes:
    """What the wide column of a row holds."""
    return b"content of %d" % number * 50


def tar_source(folder: Path) -> TarSource:
    """Write two shards and defer the wide part."""
    for shard in range(2):
        numbers = range(shard * 30, shard * 30 + 30)
        samples = [(f"{n:03d}", {"bin": content(n), "cls": b"%d" % n}) for n in numbers]
        write_tar(folder / f"{shard}.tar", samples)
    return open_tar(folder)


def open_tar(folder: Path) -> TarSource:
    """Read what `tar_source` wrote."""
    return TarSource(folder, extensions=("bin", "cls"), deferred=("bin",), batch_size=12)


def parquet_source(folder: Path) -> ParquetSource:
    """Write two shards and defer the wide column."""
    for shard in range(2):
        numbers = range(shard * 30, shard * 30 + 30)
        table = pa.table({"cls": list(numbers), "bin": [content(n) for n in numbers]})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=7)
    return open_parquet(folder)


def open_parquet(folder: Path) -> ParquetSource:
    """Read what `parquet_source` wrote."""
    return ParquetSource(folder, deferred=("bin",), batch_size=12)


SOURCES: dict[str, Callable[[Path], Any]] = {"tar": tar_source, "parquet": parquet_source}
OPENED: dict[str, Callable[[Path], Any]] = {"tar": open_tar, "parquet": open_parquet}
kinds = pytest.mark.parametrize("kind", SOURCES)


def loader_over(source: Any, **options: Any) -> SelectingLoader:
    """Select by a record that knows every row."""
    ids = np.concatenate([batch["id"].numpy() for batch in source])
    record = LossRecord(1000, clock=lambda: 0.0)
    record.update(ids, (np.arange(len(ids)) % 7).astype("f4"))
    settings: dict[str, Any] = {"sampling_rate": 0.25, "batch_size": 4, "seed": 5, **options}
    return SelectingLoader(source, record=record, ids="id", **settings)


@kinds
@pytest.mark.parametrize("workers", [0, 3])
def test_chosen_rows_come_with_their_content(kind: str, workers: int, tmp_path: Path) -> None:
    """Each row's own, and of no other row was anything read."""
    source = SOURCES[kind](tmp_path)
    loader = loader_over(source, decode=Decoding(None, workers=workers))
    numbers: list[int] = []
    for batch in loader:
        assert batch["bin"] == [content(n) for n in batch["cls"].tolist()]
        numbers += batch["cls"].tolist()
    assert len(numbers) == len(set(numbers)) == 12
    assert source.counts["fetched"] == loader.metrics.samples_selected == 15


@kinds
def test_a_decoder_gets_the_content_of_its_row(kind: str, tmp_path: Path) -> None:
    """And what it gives is stacked."""

    def decode(sample: Any) -> Any:
        assert sample["bin"] == content(int(sample["cls"]))
        return {"size": len(sample["bin"]), "cls": sample["cls"]}

    for batch in loader_over(SOURCES[kind](tmp_path), decode=decode):
        assert batch["size"].tolist() == [len(content(n)) for n in batch["cls"].tolist()]


def steps(loader: SelectingLoader) -> Iterator[Any]:
    """Train a pass."""
    for batch in loader:
        loader.mean(batch["cls"].float())
        yield batch["cls"].tolist(), batch["bin"], loader.weights.tolist()


@kinds
def test_resuming_changes_nothing(kind: str, tmp_path: Path) -> None:
    """References that wait in a checkpoint are followed after it."""
    (tmp_path / "shards").mkdir()
    make = SOURCES[kind]

    def loader() -> SelectingLoader:
        return loader_over(make(tmp_path / "shards"), decode=Decoding(None, workers=2, ahead=1))

    want = list(steps(loader()))
    assert len(want) == 3
    for cut in range(len(want) + 1):
        first, second = loader(), loader()
        got, state = list[Any](), first.state_dict()
        for step in islice(steps(first), cut):
            got.append(step)
            state = first.state_dict()
        save_checkpoint(tmp_path / "state", {"loader": state}, durable=False)
        second.load_state_dict(load_checkpoint(tmp_path / "state")["loader"])
        got += steps(second)
        assert got == want, cut


@kinds
def test_a_shard_that_vanished_costs_its_rows_and_no_batch(kind: str, tmp_path: Path) -> None:
    """Rows that wait in a checkpoint are counted where their shard is gone, others take over."""
    source = SOURCES[kind](tmp_path)
    first = loader_over(source, decode=Decoding(None, workers=1, ahead=1))
    emitted = next(iter(first))["cls"].tolist()
    state = first.state_dict()
    next(iter(tmp_path.glob("0.*"))).unlink()
    resumed = loader_over(OPENED[kind](tmp_path), decode=Decoding(None, workers=1, ahead=1))
    resumed.load_state_dict(state)
    got = list(resumed)
    assert max(emitted) < 30
    assert [len(batch["cls"]) for batch in got] == [4] * len(got)
    assert all(n >= 30 for batch in got for n in batch["cls"].tolist())
    assert resumed.metrics.samples_dropped["decode_error"] > 0


@kinds
def test_candidates_may_come_from_workers(kind: str, tmp_path: Path) -> None:
    """They bring references, which are followed in the process that trains."""
    source = SOURCES[kind](tmp_path)
    batches = DataLoader(source, batch_size=None, num_workers=2, collate_fn=as_it_is)
    record = LossRecord(1000)
    loader = SelectingLoader(batches, record=record, ids="id", sampling_rate=0.5, batch_size=4)
    numbers: list[int] = []
    for batch in loader:
        assert batch["bin"] == [content(n) for n in batch["cls"].tolist()]
        numbers += batch["cls"].tolist()
    assert len(numbers) == len(set(numbers)) == 28
