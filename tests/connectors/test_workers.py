"""DataLoader workers share the shards, however they are started, and report what they met."""

import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from adasel_connectors.chunks import as_it_is, rebatch
from adasel_connectors.parquet import ParquetSource
from adasel_connectors.source import ShardSource
from adasel_connectors.tar import TarSource
from adasel_stream.errors import ShardError, SourceError
from tests.connectors.shard_files import make_samples, rows, write_parquet, write_tar

SHARDS, ROWS = 5, 30
Make: TypeAlias = Callable[..., ShardSource]
# Python 3.12 warns of forks beside threads; that these sources survive one is what we show
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(params=["tar", "parquet"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make sources over five shards of 30 samples, numbered in `cls` or `x`."""
    for i in range(SHARDS):
        if request.param == "tar":
            samples = make_samples(ROWS, first=ROWS * i)
            numbered = [(k, {**p, "cls": b"%d" % int(k)}) for k, p in samples]
            write_tar(tmp_path / f"{i}.tar", numbered)
        else:
            columns = {"cls": np.arange(ROWS) + ROWS * i, "s": ["text"] * ROWS}
            write_parquet(tmp_path / f"{i}.parquet", columns, row_group_size=7)

    def made(**options: Any) -> ShardSource:
        if request.param == "tar":
            return TarSource(tmp_path, extensions=("jpg", "cls"), **options)
        return ParquetSource(tmp_path, **options)

    return made


def loader(source: ShardSource, workers: int, start: str | None = None) -> DataLoader[Any]:
    """Wrap a source as its documentation says."""
    return DataLoader(
        source,
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        multiprocessing_context=start,
        persistent_workers=workers > 0,
    )


@pytest.mark.parametrize(
    ("workers", "start"),
    [
        (0, None),
        (1, "fork"),
        (2, "fork"),
        pytest.param(2, "forkserver", marks=pytest.mark.slow),
        pytest.param(2, "spawn", marks=pytest.mark.slow),
    ],
)
def test_each_sample_comes_once_from_any_workers(
    make: Make, workers: int, start: str | None
) -> None:
    """Nothing is read twice or left out, in two passes of the same workers."""
    source = make(batch_size=8)
    loading = loader(source, workers, start)
    for passes in (1, 2):
        assert sorted(rows(loading, "cls")) == list(range(SHARDS * ROWS))
        assert source.counts["samples"] == passes * SHARDS * ROWS


def test_ranks_and_workers_share_together(make: Make) -> None:
    """Two ranks with two workers each read every sample once between them."""
    parts = [rows(loader(make(rank=r, world_size=2), 2, "fork"), "cls") for r in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(SHARDS * ROWS))
    assert all(parts)


def test_chunks_of_workers_are_sliced_to_one_size(make: Make) -> None:
    """Workers hand over large chunks; the trainer sees batches of exactly its size."""
    batches = list(rebatch(loader(make(batch_size=25), 2, "fork"), 8))
    assert [len(batch["id"]) for batch in batches[:-1]] == [8] * (len(batches) - 1)
    assert sorted(rows(batches, "cls")) == list(range(SHARDS * ROWS))


class WithState(IterableDataset[tuple[dict[str, Any], dict[str, Any]]]):
    """Hands over the worker's number and its source's state with each batch."""

    def __init__(self, source: ShardSource, states: dict[int, dict[str, Any]]) -> None:
        """Begin each worker at its state, if it has one."""
        self.source = source
        self.states = states

    def __iter__(self) -> Iterator[Any]:
        """Yield batch, worker, state."""
        worker = get_worker_info()
        assert worker is not None
        if worker.id in self.states:
            self.source.load_state_dict(self.states[worker.id])
        for batch in self.source:
            yield batch, worker.id, self.source.state_dict()


@pytest.mark.parametrize("stop", [1, 4, 11, 20])
def test_each_worker_can_be_resumed_at_its_own_position(make: Make, stop: int) -> None:
    """A state taken in a worker goes on in a worker of the same number."""
    states: dict[int, dict[str, Any]] = {}
    head: list[int] = []
    for batch, worker, state in islice(_with_states(make(batch_size=8), states, 2), stop):
        head += batch["cls"].tolist()
        states[worker] = state
    rest = rows((batch for batch, *_ in _with_states(make(batch_size=8), states, 2)), "cls")
    assert sorted(head + rest) == list(range(SHARDS * ROWS))
    wrong = _with_states(make(batch_size=8), {0: states[0]}, 1)
    with pytest.raises(SourceError, match="reader 0 of 2, this is reader 0 of 1") as caught:
        list(wrong)
    traceback.clear_frames(caught.tb)


def _with_states(
    source: ShardSource, states: dict[int, dict[str, Any]], workers: int
) -> DataLoader[Any]:
    return DataLoader(
        WithState(source, states),
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        multiprocessing_context="fork",
    )


def test_the_trainer_has_no_position_while_workers_read(make: Make) -> None:
    """Asking the trainer's copy for its state says so instead of giving the beginning."""
    source = make(batch_size=8)
    rows(loader(source, 1, "fork"))
    with pytest.raises(SourceError, match="DataLoader workers"):
        source.state_dict()


def test_damage_met_by_a_worker_reaches_the_trainer(make: Make, tmp_path: Path) -> None:
    """An error keeps its type and names the shard; a skip is counted where the trainer sees it."""
    source = make(batch_size=8, on_error="skip_shard")
    damaged = min(tmp_path.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    assert len(rows(loader(source, 2, "fork"))) < SHARDS * ROWS
    assert source.counts["skipped_shards"] == 1
    with pytest.raises(ShardError, match=f"'{damaged.name}'") as caught:
        rows(loader(make(batch_size=8), 2, "fork"))
    # torch raises it in a frame that refers to it; left to the garbage collector, the iterator
    # would wait 5 s for each worker, because its queues are gone before it is
    traceback.clear_frames(caught.tb)
