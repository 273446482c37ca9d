"""What is chosen is fetched and decoded, after selection and in order; the rest is left alone."""

import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adasel_stream import Decoding, LossRecord, SelectingLoader, load_checkpoint, save_checkpoint
from adasel_stream.errors import BatchError, DecodeError
from tests.streams import SIZES, Rows, Stream, batches, rows


class Opened:
    """A decoder that notes which rows it opened; some rows it cannot open."""

    def __init__(self, bad: frozenset[int] = frozenset()) -> None:
        self.bad = bad
        self.ids: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, sample: Rows) -> Rows:
        """Decode a row into a picture of its number."""
        number = int(sample["id"])
        with self._lock:
            self.ids.append(number)
        if number in self.bad:
            raise OSError("S3CR3T content is no picture")
        return {"picture": torch.full((2, 2), float(number)), "id": number, "name": f"n{number}"}


class Shelf(Stream):
    """A source that hands over references and fetches what they point to."""

    deferred: tuple[str, ...] = ("payload",)

    def __init__(self, sizes: tuple[int, ...] = SIZES, gone: frozenset[int] = frozenset()) -> None:
        super().__init__(sizes)
        self.gone = gone
        self.fetched: list[int] = []

    def __iter__(self) -> Iterator[Rows]:
        """Give rows with a reference each."""
        for batch in super().__iter__():
            yield {**batch, "payload": torch.stack([batch["id"], batch["id"] * 10], 1)}

    def fetch(self, references: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Read what is pointed to."""
        numbers = references["payload"][:, 0].tolist()
        self.fetched += numbers
        gone = self.gone
        contents = [OSError("gone") if n in gone else f"payload {n}".encode() for n in numbers]
        return {"payload": contents}


def recorded(count: int = 1000) -> LossRecord:
    """Know a loss of every row."""
    record = LossRecord(capacity=2 * count, clock=lambda: 0.0)
    record.update(np.arange(count), (np.arange(count) * 37 % 101).astype("f4"))
    return record


def loader_of(source: Any, decode: Any, **options: Any) -> SelectingLoader:
    """Select by the record alone and decode what is chosen."""
    settings: dict[str, Any] = {
        "record": recorded(),
        "ids": "id",
        "sampling_rate": 0.4,
        "batch_size": 4,
        **options,
    }
    return SelectingLoader(source, decode=decode, **settings)


def ids_in(got: list[Any]) -> list[int]:
    """Which rows came, every leaf agreeing."""
    ids: list[int] = []
    for batch in got:
        numbers = batch["id"].tolist()
        assert batch["picture"][:, 0, 0].tolist() == [float(n) for n in numbers]
        assert batch["name"] == [f"n{n}" for n in numbers]
        ids += numbers
    return ids


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_only_chosen_rows_are_decoded_and_they_come_in_order(workers: int, ahead: int) -> None:
    """However many threads and however far ahead; the same rows as without decoding."""
    plain = SelectingLoader(batches(), record=recorded(), ids="id", sampling_rate=0.4, batch_size=4)
    chosen = [i for batch in plain for i in batch["id"].tolist()]
    opened = Opened()
    loader = loader_of(batches(), Decoding(opened, workers=workers, ahead=ahead))
    got = list(loader)
    assert ids_in(got) == chosen
    assert [len(batch["id"]) for batch in got] == [4] * len(got)
    assert len(opened.ids) == loader.metrics.samples_selected == 20
    assert loader.metrics.decode_rows == {"decoded": 20, "failed": 0}


def test_a_row_that_cannot_be_decoded_is_counted_and_replaced() -> None:
    """No batch is short, and the next chosen row takes the place."""
    plain = ids_in(list(loader_of(batches(), Opened())))
    bad = frozenset(plain[1:6:2])
    loader = loader_of(batches(), Opened(bad))
    got = list(loader)
    assert [len(batch["id"]) for batch in got] == [4] * len(got)
    want = [i for i in plain if i not in bad]
    assert len(ids_in(got)) == len(want) // 4 * 4
    assert set(ids_in(got)) <= set(want)
    assert loader.metrics.samples_dropped["decode_error"] == 3
    assert loader.metrics.decode_rows["failed"] == 3


def test_weights_and_losses_belong_to_the_rows_that_were_decoded() -> None:
    """The mean of a batch with replaced rows uses their weights; the record learns their losses."""
    record = recorded()
    plain = ids_in(list(loader_of(batches(), Opened())))
    loader = loader_of(batches(), Opened(frozenset(plain[:2])), record=record)
    seen: dict[int, float] = {}
    for batch in loader:
        losses = batch["id"].float() + 500
        weights = loader.weights
        assert torch.allclose(loader.mean(losses), (losses * weights).mean())
        seen |= dict(zip(batch["id"].tolist(), losses.tolist(), strict=True))
    known = record.lookup(np.array(list(seen))).losses.tolist()
    assert known == list(seen.values())


def test_what_a_source_defers_is_fetched_for_chosen_rows_only() -> None:
    """Without a decoder the trainer gets what was fetched."""
    source = Shelf()
    loader = loader_of(source, None)
    got = list(loader)
    for batch in got:
        assert batch["payload"] == [f"payload {n}".encode() for n in batch["id"].tolist()]
    assert len(source.fetched) == loader.metrics.samples_selected == 20
    assert len(set(source.fetched)) == 20


def test_fetched_content_reaches_the_decoder() -> None:
    """In place of its reference."""
    loader = loader_of(Shelf(), lambda sample: {"size": len(sample["payload"]), "id": sample["id"]})
    for batch in loader:
        assert batch["size"].tolist() == [len(f"payload {n}") for n in batch["id"].tolist()]


def test_content_that_is_gone_is_counted_and_replaced() -> None:
    """A shard may be deleted between selection and training."""
    chosen = [i for batch in loader_of(Shelf(), None) for i in batch["id"].tolist()]
    loader = loader_of(Shelf(gone=frozenset(chosen[:3])), None)
    got = [i for batch in loader for i in batch["id"].tolist()]
    assert set(got) <= set(chosen[3:])
    assert len(got) % 4 == 0
    assert loader.metrics.decode_rows["failed"] == 3


@pytest.mark.parametrize("known", ["none", "some"])
def test_rows_that_must_be_scored_are_decoded_once(known: str) -> None:
    """The score sees decoded batches, and what is then chosen is not decoded again."""
    record = None if known == "none" else LossRecord(capacity=1000)
    if record is not None:
        record.update(np.arange(0, 51, 2), np.arange(26.0))
    opened, shapes = Opened(), list[tuple[int, ...]]()

    def score(batch: Rows) -> Tensor:
        shapes.append(tuple(batch["picture"].shape[1:]))
        losses: Tensor = batch["picture"].sum((1, 2))
        return losses

    options: dict[str, Any] = {"score": score, "record": record, "ids": record and "id"}
    loader = loader_of(batches(), opened, **options)
    got = list(loader)
    assert set(shapes) == {(2, 2)}
    assert len(got) == 5
    assert len(set(opened.ids)) == len(opened.ids)
    if known == "none":
        assert sorted(opened.ids) == list(range(51))
    assert loader.metrics.decode_rows == {"decoded": len(opened.ids), "failed": 0}


def test_rows_that_cannot_be_decoded_for_the_score_are_left_out() -> None:
    """They are counted; the others are scored and chosen from."""
    bad = frozenset(range(0, 51, 7))
    options: dict[str, Any] = {
        "score": lambda batch: batch["picture"].sum((1, 2)),
        "record": None,
        "ids": None,
    }
    loader = loader_of(batches(), Opened(bad), **options)
    got = ids_in(list(loader))
    assert not bad & set(got)
    assert loader.metrics.samples_seen == 51 - len(bad)
    assert loader.metrics.samples_dropped["decode_error"] == len(bad)


def steps(loader: SelectingLoader, passes: range) -> Iterator[tuple[int, Any]]:
    """Train through passes."""
    for number in passes:
        for batch in loader:
            loader.mean(batch["id"].float() % 13)
            yield (
                number,
                (str(batch["id"].tolist()), loader.weights.numpy().tobytes(), batch["name"]),
            )


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("scored", [False, True], ids=["record alone", "score"])
@pytest.mark.parametrize("bad", [frozenset[int](), frozenset(range(0, 200, 5))], ids=["", "bad"])
def test_resuming_while_rows_are_decoded_changes_nothing(
    ahead: int, scored: bool, bad: frozenset[int], tmp_path: Path
) -> None:
    """At every batch, through a file: rows under way are decoded again, in the same order."""

    def make() -> SelectingLoader:
        record = LossRecord(capacity=400, clock=lambda: 0.0)
        record.update(np.arange(0, 200, 3), np.arange(67.0))
        options: dict[str, Any] = {"score": lambda b: b["id"].float() * 37 % 11} if scored else {}
        return SelectingLoader(
            Shelf(),
            record=record,
            ids="id",
            decode=Decoding(Opened(bad), workers=2, ahead=ahead),
            sampling_rate=0.5,
            batch_size=3,
            **options,
        )

    want = list(steps(make(), range(3)))
    assert len(want) > 10
    for cut in range(0, len(want) + 1, 3):
        first, second = make(), make()
        got, state = list[tuple[int, Any]](), first.state_dict()
        for step in islice(steps(first, range(3)), cut):
            got.append(step)
            state = first.state_dict()
        save_checkpoint(tmp_path / "state", {"loader": state}, durable=False)
        second.load_state_dict(load_checkpoint(tmp_path / "state")["loader"])
        got += steps(second, range(got[-1][0] if got else 0, 3))
        assert got == want, cut


def test_a_decoder_that_never_works_stops_the_run() -> None:
    """A stream is not used up by a missing library; the message has no content."""
    record = LossRecord(capacity=10_000)
    source = Stream((500,) * 10)
    loader = SelectingLoader(
        source,
        record=record,
        ids="id",
        sampling_rate=0.5,
        batch_size=8,
        decode=Opened(frozenset(range(5000))),
    )
    with pytest.raises(
        DecodeError, match=r"1,000 samples in a row .* raised OSError in line"
    ) as told:
        list(loader)
    assert "S3CR3T" not in str(told.value)


def test_a_stream_of_which_nothing_can_be_decoded_ends_in_an_error() -> None:
    """However short it is: an epoch without a batch would look like a short epoch."""
    loader = loader_of(batches(), Opened(frozenset(range(51))))
    with pytest.raises(DecodeError, match=r"none of 20 chosen samples can be decoded, .* decode="):
        list(loader)


def test_samples_of_another_shape_are_counted_and_replaced() -> None:
    """One odd picture costs itself, not the batch that it would have been part of."""
    plain = ids_in(list(loader_of(batches(), Opened())))
    odd = plain[5]

    def decode(sample: Rows) -> Rows:
        opened: Rows = Opened()(sample)
        return opened | ({"picture": torch.zeros(3, 3)} if opened["id"] == odd else {})

    loader = loader_of(batches(), decode)
    got = list(loader)
    want = [i for i in plain if i != odd]
    assert len(ids_in(got)) == len(want) // 4 * 4
    assert set(ids_in(got)) <= set(want)
    assert loader.metrics.decode_rows["failed"] == 1


def test_what_a_sample_must_be_is_part_of_the_state() -> None:
    """After a resume an odd row that comes first does not set the shape of all others."""

    def decode(sample: Rows) -> Rows:
        number = int(sample["id"])
        return {"id": number, "x": torch.zeros(3 if 8 <= number < 16 else 2)}

    def make() -> SelectingLoader:
        return loader_of(
            Stream((8, 8, 8, 8)),
            Decoding(decode, workers=0, ahead=0),
            sampling_rate=0.9,
            batch_size=7,  # so that no row of the first shape waits
        )

    first = make()
    iterator = iter(first)
    next(iterator)
    state = first.state_dict()
    want = [batch["id"].tolist() for batch in iterator]
    second = make()
    second.load_state_dict(state)
    assert [batch["id"].tolist() for batch in second] == want


def test_rows_that_fail_before_their_score_raises_count_once() -> None:
    """As failed to decode, not as lost to the score as well."""

    def decode(sample: Rows) -> Rows:
        if int(sample["id"]) % 4 == 0:
            raise ValueError("no picture")
        return sample

    def score(batch: Rows) -> Tensor:
        if int(batch["id"].min()) >= 8:
            raise RuntimeError("no memory")
        losses: Tensor = batch["loss"]
        return losses

    loader = SelectingLoader(
        Stream((8, 8)), score=score, window=1, sampling_rate=0.5, decode=decode
    )
    with pytest.raises(RuntimeError, match="no memory"):
        list(loader)
    dropped = loader.metrics.samples_dropped
    assert (loader.metrics.samples_seen, dropped["decode_error"], dropped["score_error"]) == (
        6,
        4,
        6,
    )


def test_samples_that_cannot_be_stacked_are_refused() -> None:
    """The message says what decode must give, and nothing that waits is lost."""
    loader = loader_of(batches(), lambda _: object())
    for _ in range(2):
        with pytest.raises(BatchError, match="decode must give every sample the same structure"):
            list(loader)
    held = loader.state_dict()["selector"]["rows"]["held"]
    assert held["full"] or held["part"]


def test_a_loader_that_was_closed_decodes_again() -> None:
    """As one without decoding goes on after `close`."""
    loader = loader_of(batches(), Decoding(Opened(), workers=1))
    first = ids_in(list(loader))
    loader.close()
    assert len(ids_in(list(loader))) >= len(first)


def test_rows_whose_score_raised_are_counted() -> None:
    """They are gone, those that had gathered as well, and the page says how many."""
    record = LossRecord(capacity=1000)
    record.update(np.arange(0, 40, 2), np.ones(20))
    broken = [True]

    def score(batch: Rows) -> Tensor:
        if broken[0]:
            raise RuntimeError("no memory")
        losses: Tensor = batch["loss"]
        return losses

    source = [rows(i, 8) for i in range(0, 40, 8)]
    loader = SelectingLoader(
        iter(source), score=score, record=record, ids="id", sampling_rate=0.5, batch_size=4
    )
    with pytest.raises(RuntimeError, match="no memory"):
        list(loader)
    assert loader.metrics.samples_dropped["score_error"] == 8
    broken[0] = False
    list(loader)
    dropped, seen = loader.metrics.samples_dropped["score_error"], loader.metrics.samples_seen
    assert (dropped, seen) == (8, 32)


def test_a_batch_without_the_deferred_column_is_told_of() -> None:
    """Whoever drops a column between source and loader reads its name."""

    class Dropped(Shelf):
        def __iter__(self) -> Iterator[Rows]:
            """Forget the column."""
            return Stream.__iter__(self)

    source = Dropped((500,) * 10)
    loader = SelectingLoader(
        source, record=LossRecord(capacity=10_000), ids="id", sampling_rate=0.9, batch_size=8
    )
    with pytest.raises(DecodeError) as told:
        list(loader)
    assert "no column 'payload', which the source defers" in str(told.value.__cause__)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: loader_of(batches(), "jpg"),
            TypeError,
            "decode must be a function of a sample, got str",
        ),
        (lambda: Decoding(None, workers=-1), ValueError, "workers must be at least 0, got -1"),
        (lambda: Decoding(None, ahead=True), TypeError, "ahead must be a whole number, got bool"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """With what was expected and what came."""
    with pytest.raises(error, match=message):
        make()


def test_batches_that_are_decoded_go_to_the_device() -> None:
    """As tensors, while text stays text."""
    loader = loader_of(batches(), Opened(), device="cpu")
    batch = next(iter(loader))
    assert batch["picture"].device.type == "cpu"
    assert batch["name"] == [f"n{n}" for n in batch["id"].tolist()]


def test_closing_lets_go_of_the_threads() -> None:
    """No thread of the pool outlives the loader."""
    before = set(threading.enumerate())
    with loader_of([rows(0, 8)] * 8, Decoding(Opened(), workers=2)) as loader:
        list(loader)
        pool = set(threading.enumerate()) - before
        assert pool
    for thread in pool:
        thread.join(10)
        assert not thread.is_alive()
