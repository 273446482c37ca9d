import io
import json
import tarfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds  # type: ignore[import-untyped] # ships no types
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from adasel_stream import LossRecord, SelectingLoader
from tests.nestings import NESTINGS, ROWS, Encoding, rows_of, same_types
from tests.streams import SIZES, Rows, batches, loss, rows


def by_rank(batch: Any) -> Tensor:
    """Score any batch of six rows: the later the larger."""
    del batch
    return torch.arange(float(ROWS))


class Table(Dataset[Rows]):
    """Numbered rows, by index."""

    def __len__(self) -> int:
        """Count the rows."""
        return 50

    def __getitem__(self, index: int) -> Rows:
        """Give one row, without the batch's dimension."""
        return {name: column[0] for name, column in rows(index, 1).items()}


class Shards(IterableDataset[Rows]):
    """Numbered rows, one after the other, each to one worker."""

    def __iter__(self) -> Iterator[Rows]:
        """Give every second row where there are two workers."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, 50, step):
            yield Table()[index]


def emitted(source: Iterable[Any], **options: Any) -> list[Any]:
    """Select half of a stream."""
    options = {"score": loss, "sampling_rate": 0.5, **options}
    return list(SelectingLoader(source, **options))


def check_rows(selected: list[Rows], size: int) -> list[int]:
    """Make sure that every leaf still belongs to its id, and give the ids."""
    ids: list[int] = []
    for batch in selected:
        assert len(batch["id"]) == size
        for i, number in enumerate(batch["id"].tolist()):
            for name, want in rows(number, 1).items():
                assert torch.equal(batch[name][i], want[0])
        ids += batch["id"].tolist()
    assert len(set(ids)) == len(ids)
    return ids


@pytest.mark.parametrize(
    ("data", "workers"),
    [
        (Table(), 0),
        (Shards(), 0),
        pytest.param(Table(), 2, marks=pytest.mark.slow),
        pytest.param(Shards(), 2, marks=pytest.mark.slow),
    ],
)
def test_a_torch_dataloader_is_a_source(data: Dataset[Rows], workers: int) -> None:
    """Map-style or iterable, with and without workers; every row is itself and comes once."""
    context = "spawn" if workers else None
    source = DataLoader(data, batch_size=8, num_workers=workers, multiprocessing_context=context)
    ids = check_rows(emitted(source), 8)
    assert len(ids) == 24  # of 25 that were chosen one waits
    assert set(ids) <= set(range(50))


def write_shard(path: Path, count: int) -> None:
    """Write a tar shard of arrays, classes and metadata."""
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            features = io.BytesIO()
            np.save(features, np.arange(4, dtype="f4") + index)
            for extension, content in (
                ("x.npy", features.getvalue()),
                ("cls", str(index % 7).encode()),
                ("json", json.dumps({"source": f"s{index}"}).encode()),
            ):
                member = tarfile.TarInfo(f"row{index:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore::ResourceWarning:webdataset")
def test_a_webdataset_pipeline_is_a_source(tmp_path: Path) -> None:
    """Keys, arrays and metadata of a row stay together; a record knows rows by key."""
    write_shard(tmp_path / "0.tar", 40)
    pipeline = (
        wds.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
        .decode()
        .to_tuple("__key__", "x.npy", "cls", "json")
        .batched(10, collation_fn=wds.filters.default_collation_fn)
        .map(lambda columns: dict(zip(("__key__", "x", "y", "meta"), columns, strict=True)))
    )
    record = LossRecord(capacity=100)

    def score(batch: Any) -> Tensor:
        return torch.as_tensor(batch["x"]).sum(1)

    selected = emitted(pipeline, score=score, record=record, ids="__key__")
    assert len(selected) == 2
    for batch in selected:
        assert type(batch["x"]) is np.ndarray
        for key, x, y, meta in zip(*(batch[k] for k in ("__key__", "x", "y", "meta")), strict=True):
            index = int(key[3:])
            assert x.tolist() == [index + i for i in range(4)]
            assert (y, meta["source"]) == (index % 7, f"s{index}")
    assert len(record) == 40


def test_a_generator_is_a_source() -> None:
    """It gives one pass; a break leaves it where it is."""
    source = (batch for batch in batches([8] * 6))
    loader = SelectingLoader(source, score=loss, sampling_rate=0.5)
    got = [next(iter(loader))]
    got += list(loader)
    assert len(check_rows(got, 8)) == 24


def test_hugging_face_style_batches_are_a_source() -> None:
    """Columns as plain lists, with tokens of any length, and tokenizer outputs."""
    columns: dict[str, Any] = {
        "input_ids": [[1] * (i + 1) for i in range(ROWS)],
        "text": [f"t{i}" for i in range(ROWS)],
        "label": list(range(ROWS)),
    }
    sources: list[Any] = [columns, Encoding(columns, "fast")]
    for source in sources:
        for batch in emitted([source] * 4, score=by_rank, batch_size=4):
            assert type(batch) is type(source)
            for i, label in enumerate(batch["label"]):
                assert (len(batch["input_ids"][i]), batch["text"][i]) == (label + 1, f"t{label}")


@pytest.mark.parametrize("name", NESTINGS)
@pytest.mark.parametrize("policy", ["unbiased", "paper"])
def test_every_nesting_is_emitted_as_it_came(name: str, policy: str) -> None:
    """Same structure and types, rows together, the candidates unchanged."""
    batch = NESTINGS[name]
    before = rows_of(batch)
    selected = emitted([batch] * 5, score=by_rank, policy=policy, batch_size=4)
    assert len(selected) == 3
    for got in selected:
        assert same_types(got, batch)
        assert len(rows_of(got)) == 4
        assert all(row in before for row in rows_of(got))
    assert rows_of(batch) == before


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 7, 8, 20, 51])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:selection cannot pay:RuntimeWarning")
def test_emitted_batches_have_one_size(batch_size: int | None, rate: float) -> None:
    """Smaller than what a candidate batch gives, or larger than all of it; none is short."""
    selected = emitted(batches(), sampling_rate=rate, batch_size=batch_size)
    size = batch_size or SIZES[0]
    ids = check_rows(selected, size)
    assert len(selected) == int(sum(SIZES) * rate) // size
    assert len(ids) == len(selected) * size


def test_rows_that_wait_come_in_the_next_pass() -> None:
    """Nothing that was selected is lost at the end of a pass."""
    loader = SelectingLoader(batches([6, 6]), score=loss, sampling_rate=0.5, batch_size=4)
    first, second = list(loader), list(loader)
    assert (len(first), len(second)) == (1, 2)
    assert loader.metrics.samples_selected == 12


def test_a_pass_that_emits_nothing_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """A training loop around it would end in silence; its rows come in the next pass."""
    loader = SelectingLoader(batches([6]), score=loss, sampling_rate=0.5, batch_size=8)
    assert [len(list(loader)) for _ in range(6)] == [0, 0, 1, 0, 0, 1]
    again = SelectingLoader(batches([6]), score=loss, sampling_rate=0.5, batch_size=8)
    again.load_state_dict(loader.state_dict())
    assert not list(again)
    told = [one.message for one in caplog.records if one.name == "adasel_stream.barren"]
    assert told == [
        "a whole pass over the source emitted nothing: 3 rows are chosen, a batch has 8; they wait "
        "for the next pass. Pass a smaller batch_size=, or a higher sampling_rate="
    ]


def test_a_loader_on_a_device_emits_there() -> None:
    """Arrays become tensors where batches are scored; text stays text."""
    device = torch.device("cpu")
    source = [{"x": np.arange(4.0), "t": ["a", "b", "c", "d"]}] * 3
    seen: list[Any] = []

    def score(batch: Any) -> Tensor:
        seen.append(batch["x"])
        losses: Tensor = batch["x"]
        return losses

    selected = emitted(source, score=score, device=device)
    assert all(isinstance(x, Tensor) for x in seen)
    assert all(isinstance(batch["x"], Tensor) for batch in selected)
    assert all(isinstance(batch["t"], list) for batch in selected)


def test_one_window_of_candidates_is_alive_at_a_time() -> None:
    """Neither loader nor buffer keeps what is left over while the source makes the next window."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def source() -> Iterator[Rows]:
        for start in range(0, 48, 8):
            alive.append(sum(ref() is not None for ref in made))
            batch = rows(start, 8)
            made.append(weakref.ref(batch["x"]))
            yield batch
            del batch

    record = LossRecord(capacity=100)
    for batch in SelectingLoader(source(), score=loss, sampling_rate=0.5, record=record, ids="id"):
        del batch
    assert alive == [0, 1] * 3


def test_a_pass_that_is_left_lets_go_of_the_source() -> None:
    """After a break no iterator is kept, so that workers end and generators are closed."""
    closed: list[bool] = []

    class Source:
        def __iter__(self) -> Iterator[Rows]:
            try:
                yield from batches([8] * 6)
            finally:
                closed.append(True)

    loader = SelectingLoader(Source(), score=loss, sampling_rate=0.5)
    for _ in loader:
        break
    assert closed == [True]
    assert len(list(loader)) == 3
    assert closed == [True, True]
