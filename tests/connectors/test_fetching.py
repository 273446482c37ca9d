"""References can be followed from any process and thread, and never to other content."""

import gc
import os
import pickle
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from adasel_connectors import source as source_module
from adasel_connectors.chunks import as_it_is, rebatch
from adasel_connectors.manifest import check_shard, write_manifest
from adasel_connectors.parquet import ParquetSource
from adasel_connectors.source import ShardSource
from adasel_connectors.tar import TarSource
from adasel_stream.errors import ShardError
from tests.connectors.shard_files import write_parquet, write_tar

SHARDS, ROWS = 3, 8
Make: TypeAlias = Callable[..., ShardSource]
# Python 3.12 warns of forks beside threads; fetching happens in the trainer alone
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def content(number: int, salt: int = 0) -> bytes:
    """Make the wide content of a sample."""
    return b"%d:%d;" % (number, salt) * (40 + number % 5)


def write_shard(kind: str, folder: Path, shard: int, salt: int = 0, rows: int = ROWS) -> Path:
    """Write a shard of wide samples, numbered over all shards; renamed into place."""
    numbers = range(shard * ROWS, shard * ROWS + rows)
    new, path = folder / f".new.{kind}", folder / f"{shard}.{kind}"
    if kind == "tar":
        write_tar(new, [(f"{i}", {"x": content(i, salt), "cls": b"%d" % i}) for i in numbers])
    else:
        columns = {"x": [content(i, salt) for i in numbers], "cls": list(numbers)}
        write_parquet(new, columns, row_group_size=5, compression="none", use_dictionary=False)
    return new.rename(path)


@pytest.fixture(params=["tar", "parquet"])
def kind(request: pytest.FixtureRequest) -> str:
    """Name each kind of shard."""
    name: str = request.param
    return name


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    """Three shards of wide samples."""
    for shard in range(SHARDS):
        write_shard(kind, tmp_path, shard)
    return tmp_path


@pytest.fixture
def make(kind: str, folder: Path) -> Make:
    """Make sources that defer the wide column."""

    def made(**options: Any) -> ShardSource:
        options = {"deferred": ("x",), **options}
        if kind == "tar":
            return TarSource(folder, extensions=("x", "cls"), **options)
        return ParquetSource(folder, **options)

    return made


def references(source: ShardSource) -> Tensor:
    """Read the references of all samples."""
    return torch.cat([batch["x"] for batch in source])


def fetched(source: ShardSource, rows: Tensor) -> list[Any]:
    """Follow references to the wide column."""
    return source.fetch({"x": rows})["x"]


def good(values: list[Any]) -> list[bool]:
    """Tell which values are content; the others must be errors that name no content."""
    for value in values:
        assert isinstance(value, bytes | ShardError)
        assert isinstance(value, bytes) or str(value).isprintable()
    return [isinstance(value, bytes) for value in values]


EXPECTED = [content(i) for i in range(SHARDS * ROWS)]


def test_references_outlive_the_source_that_gave_them(make: Make) -> None:
    """Another source over the same shards, as after a restart, follows them before it reads."""
    kept = torch.tensor(references(make()).tolist())
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(1))
    assert fetched(make(), kept[order]) == [EXPECTED[i] for i in order.tolist()]
    assert fetched(make(), kept[:0]) == []


def test_stopping_at_any_batch_gives_the_same_references(make: Make) -> None:
    """A resumed pass goes on with the references that an undisturbed one gives."""
    whole = references(make(batch_size=5))
    for stop in range(5):
        first = make(batch_size=5)
        iterator = iter(first)
        head = [next(iterator)["x"] for _ in range(stop)]
        resumed = make(batch_size=5)
        resumed.load_state_dict(first.state_dict())
        assert torch.equal(torch.cat([*head, *(batch["x"] for batch in resumed)]), whole)


@pytest.mark.parametrize(
    ("workers", "start"),
    [
        (0, None),
        (2, "fork"),
        pytest.param(2, "spawn", marks=pytest.mark.slow),
    ],
)
def test_candidates_of_workers_are_fetched_in_the_trainer(
    make: Make, workers: int, start: str | None
) -> None:
    """The trainer's source follows references that its workers made, in both of two passes."""
    source = make(batch_size=5)
    loading = rebatch(
        DataLoader(
            source,
            batch_size=None,
            num_workers=workers,
            collate_fn=as_it_is,
            multiprocessing_context=start,
        ),
        3,
    )
    for passes in (1, 2):
        pairs = [
            (number, value)
            for batch in loading
            for number, value in zip(
                batch["cls"].tolist(), loading.fetch({"x": batch["x"]})["x"], strict=True
            )
        ]
        assert sorted(pairs) == list(enumerate(EXPECTED))
        assert source.counts["fetched"] == passes * SHARDS * ROWS


def test_a_source_with_open_shards_can_be_sent_to_a_worker(make: Make) -> None:
    """A copy by pickle opens shards of its own."""
    source = make()
    kept = references(source)
    assert fetched(source, kept) == EXPECTED
    copy: ShardSource = pickle.loads(pickle.dumps(source))  # only ever our own bytes, as torch does
    assert fetched(copy, kept) == EXPECTED


def test_another_shard_under_the_name_is_noticed(kind: str, folder: Path, make: Make) -> None:
    """After a replacement old references give errors, new ones the new content."""
    kept = references(make())
    write_shard(kind, folder, 1, salt=1)
    source = make()
    values = fetched(source, kept)
    assert good(values) == [True] * ROWS + [False] * ROWS + [True] * ROWS
    assert f"'1.{kind}': sample 0: it has changed" in str(values[ROWS])
    assert source.counts["unfetched_changed"] == source.counts["unfetched"] == ROWS
    renewed = fetched(source, references(make()))
    assert renewed[ROWS : 2 * ROWS] == [content(i, salt=1) for i in range(ROWS, 2 * ROWS)]


def test_what_is_open_survives_that_its_name_is_reused_or_gone(
    kind: str, folder: Path, make: Make
) -> None:
    """Rows that were chosen before a shard was replaced or removed can still be had."""
    source = make()
    kept = references(source)
    fetched(source, kept[:: ROWS - 1])
    write_shard(kind, folder, 0, salt=1)
    (folder / f"1.{kind}").unlink()
    assert fetched(source, kept) == EXPECTED
    unopened = make()
    assert good(fetched(unopened, kept)) == [False] * 2 * ROWS + [True] * ROWS
    assert unopened.counts["unfetched_changed"] == ROWS
    assert unopened.counts["unfetched_unknown"] == ROWS  # it is not among the shards any more


def test_a_shard_that_is_gone_is_missing(kind: str, folder: Path, make: Make) -> None:
    """Its rows give errors; when it comes back, they can be had."""
    source = make()
    kept = references(source)
    path = (folder / f"2.{kind}").rename(folder / "elsewhere")
    values = fetched(source, kept)
    assert good(values) == [True] * 2 * ROWS + [False] * ROWS
    assert source.counts["unfetched_missing"] == ROWS
    path.rename(folder / f"2.{kind}")
    assert fetched(source, kept) == EXPECTED


def test_a_shard_cut_in_place_while_it_is_open_is_noticed(
    kind: str, folder: Path, make: Make
) -> None:
    """Not even a mapping of bytes that are no more there is followed."""
    source = make()
    kept = references(source)
    assert fetched(source, kept) == EXPECTED
    path = folder / f"0.{kind}"
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    assert good(fetched(source, kept)) == [False] * ROWS + [True] * 2 * ROWS
    os.truncate(path, 0)
    assert good(fetched(source, kept)) == [False] * ROWS + [True] * 2 * ROWS
    path.write_bytes(whole)
    assert fetched(source, kept) == EXPECTED


def test_a_shard_that_was_only_touched_is_the_same(kind: str, folder: Path, make: Make) -> None:
    """A new time of change alone does not make a shard another."""
    source = make()
    kept = references(source)
    fetched(source, kept)
    os.utime(folder / f"0.{kind}", (1, 1))
    assert fetched(source, kept) == EXPECTED


def test_with_a_manifest_altered_content_is_never_given(
    kind: str, folder: Path, make: Make
) -> None:
    """A flipped bit where no fingerprint looks is named; the other shards are read."""
    manifest = write_manifest(folder)
    path = folder / f"1.{kind}"
    whole = path.read_bytes()
    kept = references(make(manifest=manifest))
    altered = bytearray(whole)
    altered[whole.index(content(ROWS + 3)) + 2] ^= 1
    path.write_bytes(altered)
    source = make(manifest=manifest)
    for _ in range(2):
        assert good(fetched(source, kept)) == [True] * ROWS + [False] * ROWS + [True] * ROWS
    assert source.counts["unfetched_wrong_sha256"] == 2 * ROWS
    path.write_bytes(whole)
    write_shard(kind, folder, SHARDS)
    kept = references(make())
    source = make(manifest=manifest)
    assert good(fetched(source, kept)) == [True] * SHARDS * ROWS + [False] * ROWS
    assert source.counts["unfetched_unlisted"] == ROWS


def test_a_shard_is_verified_once(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading verifies for fetching too, in one process."""
    manifest = write_manifest(folder)
    verified: list[str] = []

    def watched(view: Any, entry: Any) -> None:
        verified.append(entry.name)
        check_shard(view, entry)

    monkeypatch.setattr(source_module, "check_shard", watched)
    source = make(manifest=manifest)
    kept = references(source)
    fetched(source, kept)
    assert len(verified) == SHARDS
    for _ in range(2):
        restarted = make(manifest=manifest)
        fetched(restarted, kept)
        fetched(restarted, kept)
    assert len(verified) == 3 * SHARDS


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_forged_references_give_errors_or_samples(make: Make, data: st.DataObject) -> None:
    """Whatever numbers a damaged snapshot holds, nothing is raised and nothing outside is read."""
    source = make()
    kept = references(source)
    numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 5000)
    forged = kept[data.draw(st.integers(0, len(kept) - 1))].clone()
    for column in data.draw(st.sets(st.integers(0, kept.shape[1] - 1))):
        forged[column] = data.draw(numbers)
    values = fetched(source, torch.stack([forged, kept[0]]))
    good(values)
    assert values[1] == EXPECTED[0]


def test_threads_fetch_side_by_side(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads, fewer files held open than shards: all content is right, all of it counted."""
    monkeypatch.setattr("adasel_connectors.open_shards._HELD_OPEN", 2)
    source = make()
    kept = references(source)

    def work(seed: int) -> bool:
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:16]
        return fetched(source, kept[order]) == [EXPECTED[i] for i in order.tolist()]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert source.counts["fetched"] == 200 * 16
    size = source.counts["fetched_bytes"]
    assert size == sum(
        len(EXPECTED[i])
        for seed in range(200)
        for i in torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:16]
    )


def test_few_files_are_held_open(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards beyond the limit are closed, and all of them with the source."""
    monkeypatch.setattr("adasel_connectors.open_shards._HELD_OPEN", 1)
    descriptors = Path("/proc/self/fd")
    gc.collect()  # files that earlier tests left to it
    unused = len(list(descriptors.iterdir()))
    source = make()
    kept = references(source)
    before = len(list(descriptors.iterdir()))
    fetched(source, kept)
    one = len(list(descriptors.iterdir())) - before
    fetched(source, kept)
    assert 0 < one == len(list(descriptors.iterdir())) - before
    del source
    assert len(list(descriptors.iterdir())) == unused


def test_what_are_no_references_is_refused(make: Make) -> None:
    """A wrong column, shape or type is the caller's mistake, and raised."""
    source = make()
    kept = references(source)
    for columns, message in (
        ({"cls": kept}, "'cls'"),
        ({"x": kept[:, :-1]}, "shape"),
        ({"x": kept.float()}, "int64"),
    ):
        with pytest.raises(ValueError, match=message):
            source.fetch(columns)
    wrong: Any = ([kept], {"x": kept.tolist()})
    for columns, message in zip(wrong, ("mapping .* got list", "tensor, .* got list"), strict=True):
        with pytest.raises(TypeError, match=message):
            source.fetch(columns)
    with pytest.raises(ValueError, match="deferred"):
        make(deferred=("nothing",))
    with pytest.raises(TypeError, match="one string"):
        make(deferred="x")
    assert make(deferred=()).deferred == ()
    assert "fetched" not in make(deferred=()).counts


def test_an_error_keeps_its_cause_and_no_frames(make: Make, folder: Path, kind: str) -> None:
    """What a row failed of can be asked for; a failure that is remembered holds no files."""
    source = make()
    kept = references(source)
    (folder / f"0.{kind}").write_bytes(b"")
    (error,) = fetched(source, kept[:1])
    assert isinstance(error, ShardError)
    assert error.__cause__ is not None
    assert traceback.extract_tb(error.__traceback__) == []
