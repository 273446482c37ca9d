import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch

from adasel_connectors.parquet import ParquetSource
from adasel_stream import LossRecord, SelectingLoader, load_checkpoint, save_checkpoint
from tests.nestings import Encoding, Frozen, Pair
from tests.streams import SIZES, Rows, Stream, loss, rows

PASSES = 3
COUNTERS = (
    *("samples_seen", "samples_selected", "samples_dropped", "score_rows", "policy_updates"),
    *("steps", "method_agreed", "record_lookups", "record_evictions"),
)

Make = Callable[[], SelectingLoader]


class Step(NamedTuple):
    """What a batch was made of, bit for bit, and in which pass it came."""

    number: int
    rows: str
    weights: bytes
    method_weights: tuple[float, ...]


def steps(loader: SelectingLoader, first_pass: int = 0) -> Iterator[Step]:
    """Train through all passes that are left."""
    for number in range(first_pass, PASSES):
        for batch in loader:
            losses = loss(batch) * (1 + len(batch) % 3)
            loader.mean(losses)
            rows = str({key: value.tolist() for key, value in batch.items()})
            weights = loader.weights.numpy().tobytes()
            yield Step(number, rows, weights, tuple(loader.metrics.method_weight_ratio))


def counters(loader: SelectingLoader) -> dict[str, Any]:
    """Everything that the metrics counted, but for time."""
    loader.metrics.refresh()
    counted: dict[str, Any] = {name: getattr(loader.metrics, name) for name in COUNTERS}
    for name, histogram in loader.metrics.loss.items():
        counted[name] = histogram.state_dict()
    return counted


def through_a_file(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Save and load, as a new process would."""
    save_checkpoint(path, {"loader": state}, durable=False)
    loaded: dict[str, Any] = load_checkpoint(path)["loader"]
    return loaded


def check_resumes(make: Make, path: Path) -> None:
    """Resume at every batch, and resume the resumed one batch later: nothing may differ."""
    undisturbed = make()
    want = list(steps(undisturbed))
    assert len(want) >= 3
    for cut in range(len(want) + 1):
        first, second, last = make(), make(), make()
        got, state = list[Step](), first.state_dict()
        for step in islice(steps(first), cut):
            got.append(step)
            state = first.state_dict()
        second.load_state_dict(through_a_file(state, path))
        for step in islice(steps(second, number_of(got)), 1):
            got.append(step)
            state = second.state_dict()
        last.load_state_dict(through_a_file(state, path))
        got += steps(last, number_of(got))
        assert got == want, cut
        assert counters(last) == counters(undisturbed)


def number_of(got: list[Step]) -> int:
    """Say which pass is under way."""
    return got[-1].number if got else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "batch_size"),
    [((5, 1, 16), 2), (SIZES, 8), (SIZES, 17)],
    ids=["below k", "as b", "above b"],
)
@pytest.mark.parametrize("policy", ["unbiased", "paper"])
@pytest.mark.parametrize("recorded", [False, True], ids=["no record", "record"])
def test_resuming_changes_nothing(
    sizes: tuple[int, ...], batch_size: int, policy: str, recorded: bool, tmp_path: Path
) -> None:
    """At every batch, twice in a row, through a checkpoint file, over several passes."""

    def make() -> SelectingLoader:
        # too small for all rows, so that what is evicted counts
        record = LossRecord(capacity=16, clock=lambda: 0.0) if recorded else None
        return SelectingLoader(
            Stream(sizes),
            score=loss,
            sampling_rate=0.4,
            policy=policy,
            batch_size=batch_size,
            record=record,
            ids="id" if recorded else None,
            seed=3,
        )

    check_resumes(make, tmp_path / "state")


@pytest.mark.slow
def test_resuming_by_the_record_alone_changes_nothing(tmp_path: Path) -> None:
    """The losses that serving had given are part of the state."""

    def make() -> SelectingLoader:
        record = LossRecord(capacity=200, clock=lambda: 0.0)
        loader = SelectingLoader(
            Stream(), record=record, ids="id", sampling_rate=0.4, batch_size=7, policy="paper"
        )
        loader.observe(torch.arange(0, 102, 2), torch.arange(51.0))
        return loader

    check_resumes(make, tmp_path / "state")


@pytest.mark.slow
def test_resuming_over_parquet_shards_changes_nothing(tmp_path: Path) -> None:
    """The connector's position and the loader's state are one."""
    for number in range(2):
        x = np.random.default_rng(number).normal(size=22).astype("f4")
        table = pa.table({"loss": np.abs(x), "x": x})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=9)

    def make() -> SelectingLoader:
        source = ParquetSource(tmp_path, batch_size=13)
        record = LossRecord(capacity=64, clock=lambda: 0.0)
        return SelectingLoader(
            source, score=loss, sampling_rate=0.4, batch_size=4, record=record, ids="id"
        )

    check_resumes(make, tmp_path / "state")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda b: Frozen(b["x"], {"id": b["id"], "loss": b["loss"]}),
        lambda b: Pair(b["x"], {"id": b["id"], "loss": b["loss"]}),
        lambda b: Encoding(b, "own"),
        lambda b: (b["x"], [{"id": b["id"], "loss": b["loss"]}, None]),
    ],
    ids=["dataclass", "named tuple", "mapping", "plain"],
)
def test_waiting_batches_of_any_type_come_after_a_resume(wrap: Callable[[Rows], Any]) -> None:
    """A file names no class: a structure of the user's own types is learnt from the next batch."""

    class Wrapped(Stream):
        def __iter__(self) -> Iterator[Any]:
            """Give batches of the user's own type."""
            for batch in super().__iter__():
                yield wrap(batch)

    def score(batch: Any) -> torch.Tensor:
        held: Any = batch
        if not isinstance(batch, Encoding):
            held = getattr(batch, "y", None) or batch[1][0]
        return loss(held)

    def make() -> SelectingLoader:
        return SelectingLoader(Wrapped(), score=score, sampling_rate=0.9, batch_size=2)

    with pytest.warns(RuntimeWarning, match="cannot pay"):
        want = [str(batch) for batch in make()]
    first = make()
    iterator = iter(first)
    with pytest.warns(RuntimeWarning, match="cannot pay"):
        got = [str(next(iterator)) for _ in range(2)]
    second = make()
    second.load_state_dict(first.state_dict())
    resumed = iter(second)
    got.append(str(next(resumed)))
    third = make()
    third.load_state_dict(second.state_dict())
    got += [str(batch) for batch in third]
    assert got == want


def test_the_streams_of_these_tests_are_what_they_say() -> None:
    """Rows are numbered through, and a pass has other rows than the one before."""
    source = Stream()
    assert [len(batch["id"]) for batch in source] == list(SIZES)
    assert next(iter(source))["id"][0] == sum(SIZES)
    assert torch.equal(rows(3, 2)["x"], rows(0, 9)["x"][3:5])


def test_a_state_from_the_beginning_leaves_nothing_waiting() -> None:
    """A used loader that begins anew has no row of its earlier life in its first batch."""

    def make() -> SelectingLoader:
        return SelectingLoader(Stream((16,) * 6), score=loss, sampling_rate=0.3)

    want = [batch["id"].tolist() for batch in make()]
    loader = make()
    beginning = loader.state_dict()
    next(iter(loader))
    loader.load_state_dict(beginning)
    assert [batch["id"].tolist() for batch in loader] == want


class Typed(Stream):
    """Batches of the user's own type."""

    def __iter__(self) -> Iterator[Any]:
        """Give named tuples."""
        for batch in super().__iter__():
            yield Pair(batch["id"], batch["loss"])


def typed_loader(passes: int) -> SelectingLoader:
    """Train on everything in batches of four."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SelectingLoader(
            Typed((16,) * passes), score=lambda b: b[1], sampling_rate=0.6, batch_size=4
        )


def test_a_batch_that_was_only_looked_at_is_not_lost() -> None:
    """A pass that is broken off after a resume is gone on with where it was."""
    first = typed_loader(6)
    iterator = iter(first)
    next(iterator)
    state = first.state_dict()
    want = [batch[0].tolist() for batch in iterator]
    second, third = typed_loader(6), typed_loader(6)
    second.load_state_dict(state)
    got = [next(iter(second))[0].tolist()]
    third.load_state_dict(second.state_dict())
    got += [batch[0].tolist() for batch in third]
    assert got == want


def test_rows_of_a_pass_that_was_over_come_with_the_next(caplog: pytest.LogCaptureFixture) -> None:
    """Where their type can only be learnt from candidates; and it is said."""

    def gathered() -> SelectingLoader:
        record = LossRecord(100, clock=lambda: 0.0)
        record.update(np.arange(0, 200, 2), np.ones(100))
        return SelectingLoader(
            Typed((16,) * 2),
            score=lambda b: b[1],
            record=record,
            ids=lambda b: b[0],
            sampling_rate=0.5,
            batch_size=2,
        )

    first = gathered()
    states = [first.state_dict() for _ in first]
    over = [state for state in states if state["over"]]
    second = gathered()
    second.load_state_dict(over[0])
    waiting = second.state_dict()["selector"]["rows"]
    rest = list(second)
    assert waiting is not None
    assert rest == []
    assert "come at the beginning of the next pass" in caplog.text
    assert list(second)
