from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adasel_stream import LossRecord, SelectingLoader
from adasel_stream.errors import RecordError, ScoreError
from adasel_stream.judged import Judged
from adasel_stream.known import KnownLosses
from adasel_stream.lookups import Lookups, lookups_for
from adasel_stream.trees import emptied, flatten
from tests.streams import Counted, Rows, rows


def judge(known: KnownLosses, batch: Rows, *, rest: bool = False) -> list[Judged]:
    """Offer a batch of rows; get all candidates whose losses are there."""
    leaves = flatten(batch)
    ids = None if known.lookups is None else known.lookups.recognise(batch, len(batch["id"]))
    known.offer([batch], leaves, ids)
    template, judged = emptied(batch, leaves), list[Judged]()
    while (one := known.judge(template, rest=rest)) is not None:
        judged.append(one)
    return judged


def known_by(score: Any, record: LossRecord | None, where: Any = "id") -> KnownLosses:
    """Know losses by a record, and score the others."""
    return KnownLosses(score, None if record is None else Lookups(record, where))


def lookups_of(known: KnownLosses) -> Lookups:
    """What is known by id."""
    assert known.lookups is not None
    return known.lookups


def find(known: KnownLosses, batch: Rows) -> Judged:
    """Get the losses of a batch that is all known or all unknown."""
    (judged,) = judge(known, batch)
    return judged


def ids_of(judged: Judged) -> list[int]:
    """Which rows these are; what is remembered of them agrees."""
    assert judged.ids is not None
    assert torch.as_tensor(judged.leaves["['id']"]).tolist() == judged.ids.tolist()
    ids: list[int] = judged.ids.tolist()
    return ids


def test_without_a_record_every_row_is_scored() -> None:
    """Ids are not even looked for."""
    score = Counted()
    known = known_by(score, None, "there is no such key")
    judged = find(known, rows(0, 4))
    assert torch.equal(judged.scored.losses, rows(0, 4)["loss"])
    assert judged.fresh.tolist() == [True] * 4
    assert (judged.ages_s.tolist(), score.ids) == ([], [0, 1, 2, 3])
    assert not known.gathering


def test_rows_gather_until_a_whole_batch_of_their_kind_is_there() -> None:
    """The score sees full batches of unknown rows; known ones go on without it."""
    record = LossRecord(capacity=100)
    record.update(np.arange(0, 24, 3), np.arange(0, 24, 3) + 50.0)
    score, sizes = Counted(), list[int]()

    def counted(batch: Rows) -> Tensor:
        sizes.append(len(batch["id"]))
        return score(batch)

    known = known_by(counted, record)
    assert judge(known, rows(0, 6)) == []
    assert known.gathering
    (fresh,) = judge(known, rows(6, 6))
    assert ids_of(fresh) == [1, 2, 4, 5, 7, 8]
    assert torch.equal(fresh.scored.losses, torch.as_tensor(fresh.leaves["['loss']"]))
    assert fresh.fresh.all()
    recorded, fresh = judge(known, rows(12, 6))
    assert ids_of(recorded) == [0, 3, 6, 9, 12, 15]
    assert recorded.scored.losses.tolist() == [50.0, 53.0, 56.0, 59.0, 62.0, 65.0]
    assert not recorded.fresh.any()
    assert len(recorded.ages_s) == 6
    assert ids_of(fresh) == [10, 11, 13, 14, 16, 17]
    assert sizes == [6, 6]


def test_a_short_batch_does_not_make_small_ones_for_ever() -> None:
    """Rows gather to the largest candidate batch so far, also after a resume."""
    record = LossRecord(capacity=1000, clock=lambda: 0.0)
    record.update(np.arange(0, 100, 2), np.ones(50))
    first = known_by(Counted(), record)
    assert len(judge(first, rows(200, 16))) == 1
    known = known_by(Counted(), record)
    known.load_state_dict(first.state_dict(), None)
    assert judge(known, rows(0, 3)) == []
    sizes = [len(one.fresh) for start in range(10, 60, 10) for one in judge(known, rows(start, 10))]
    assert sizes == [16, 16]


def test_what_gathered_comes_when_nothing_more_will() -> None:
    """At the end of a pass no row stays behind, whichever kind it is of."""
    record = LossRecord(capacity=100)
    record.update(np.array([1, 3]), np.array([50.0, 70.0]))
    known = known_by(score := Counted(), record)
    recorded, fresh = judge(known, rows(0, 5), rest=True)
    assert (ids_of(recorded), ids_of(fresh)) == ([1, 3], [0, 2, 4])
    assert recorded.scored.losses.tolist() == [50.0, 70.0]
    assert score.ids == [0, 2, 4]
    assert not known.gathering


def test_what_gathered_is_part_of_the_state() -> None:
    """Rows that wait for others are neither lost nor looked up again."""

    def make() -> KnownLosses:
        record = LossRecord(capacity=100, clock=lambda: 0.0)
        record.update(np.array([1, 3]), np.array([50.0, 70.0]))
        return known_by(Counted(), record)

    one, other = make(), make()
    assert judge(one, rows(0, 5)) == []
    other.load_state_dict(one.state_dict(), None)
    for known in (one, other):
        whole, recorded, fresh = judge(known, rows(20, 3), rest=True)
        assert (ids_of(whole), ids_of(recorded), ids_of(fresh)) == ([20, 21, 22], [1, 3], [0, 2, 4])


def test_a_batch_that_is_known_altogether_is_not_scored() -> None:
    """The forward pass is spared."""
    record = LossRecord(capacity=100)
    record.update(np.arange(4), np.arange(4.0))
    score = Counted()
    judged = find(known_by(score, record), rows(0, 4))
    assert judged.scored.losses.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert score.ids == []
    assert not judged.fresh.any()


def test_an_unknown_batch_is_scored_as_it_came() -> None:
    """With its last-layer quantities and without a copy."""
    batch, got = rows(0, 4), list[Any]()

    def score(b: Rows) -> Tensor:
        got.append(b)
        losses: Tensor = b["loss"]
        return losses

    find(known_by(score, LossRecord(capacity=100)), batch)
    assert got[0] is batch


def test_stale_losses_are_scored_again() -> None:
    """A loss older than the record allows is not known."""
    now = [0.0]
    record = LossRecord(capacity=100, max_age_s=10, clock=lambda: now[0])
    known = known_by(score := Counted(), record)
    lookups_of(known).observe(np.arange(2), np.ones(2))
    now[0] = 5.0
    assert find(known, rows(0, 2)).ages_s.tolist() == [5.0, 5.0]
    now[0] = 20.0
    assert find(known, rows(0, 2)).fresh.all()
    assert score.ids == [0, 1]


def test_gathered_rows_keep_every_kind_of_leaf() -> None:
    """The score sees the structure that it knows."""
    record = LossRecord(capacity=100)
    record.update(np.array([1]), np.array([9.0]))
    batch = {"id": torch.arange(3), "t": ["a", "b", "c"], "n": np.arange(3.0), "none": None}
    seen: list[Any] = []

    def score(b: Any) -> Tensor:
        seen.append((b["id"].tolist(), b["t"], b["n"].tolist(), b["none"]))
        return torch.ones(len(b["t"]))

    judge(known_by(score, record), batch, rest=True)
    assert seen == [([0, 2], ["a", "c"], [0.0, 2.0], None)]


def test_without_a_score_unknown_rows_count_as_average() -> None:
    """Neither preferred nor shunned; the average is that of the candidates that are known."""
    known = known_by(None, LossRecord(capacity=100))
    assert find(known, rows(0, 2)).scored.losses.tolist() == [0.0, 0.0]
    lookups_of(known).observe(np.array([0, 1, 2]), np.array([1.0, 3.0, np.nan]))
    judged = find(known, rows(0, 4))
    assert judged.scored.losses.tolist() == [1.0, 3.0, 2.0, 2.0]
    assert not judged.fresh.any()


def test_the_average_follows_the_last_ten_thousand_losses() -> None:
    """It is even at first and forgets later; what nobody offers again has no part in it."""
    known = known_by(None, LossRecord(capacity=20_000))
    lookups_of(known).observe(np.arange(5000), np.full(5000, 1.0))
    lookups_of(known).observe(np.arange(5000, 10_000), np.full(5000, 3.0))
    unknown = rows(90_000, 1)
    for _ in range(2):
        find(known, rows(0, 5000))
    assert find(known, unknown).scored.losses.item() == pytest.approx(1.0)
    for _ in range(20):
        find(known, rows(5000, 5000))
    assert find(known, unknown).scored.losses.item() == pytest.approx(3.0, abs=1e-4)


def test_duplicates_in_a_batch_are_all_scored_and_recorded_once() -> None:
    """Their mean is what is known of them next time."""
    record = LossRecord(capacity=100)
    known = known_by(score := Counted(), record)
    batch = rows(0, 3)
    batch["id"] = torch.tensor([5, 5, 6])
    assert find(known, batch).fresh.all()
    lookups_of(known).observe(np.array([5, 5, 6]), np.array([1.0, 3.0, 7.0]))
    assert len(record) == 2
    assert find(known, batch).scored.losses.tolist() == [2.0, 2.0, 7.0]
    assert score.ids == [5, 5, 6]


def test_a_score_that_ignores_the_subset_is_refused() -> None:
    """It must give one loss for each row that it was handed."""
    record = LossRecord(capacity=100)
    record.update(np.array([1]), np.array([9.0]))
    known = known_by(lambda _: torch.ones(4), record)
    with pytest.raises(ScoreError, match=r"shape \(4,\), expected \(3,\)"):
        judge(known, rows(0, 4), rest=True)


def test_the_state_goes_on_with_the_record_and_the_average() -> None:
    """What one knows the other knows."""
    one, other = (known_by(None, LossRecord(capacity=100)) for _ in range(2))
    lookups_of(one).observe(np.array([0, 1]), np.array([1.0, 3.0]))
    find(one, rows(0, 2))
    other.load_state_dict(one.state_dict(), None)
    assert torch.equal(find(one, rows(0, 4)).scored.losses, find(other, rows(0, 4)).scored.losses)
    with pytest.raises(RecordError, match="capacity"):
        known_by(None, LossRecord(capacity=999)).load_state_dict(one.state_dict(), None)


def test_old_losses_are_corrected_by_what_fresh_ones_said() -> None:
    """The model has halved its losses since: so has the record, as far as selection goes."""
    record = LossRecord(capacity=1000)
    known = known_by(None, record)
    held = np.linspace(0.0, 0.2, 200, dtype=np.float32)
    lookups_of(known).observe(np.arange(200), held)
    lookups_of(known).staleness.learn(held, np.zeros(200, np.float32), held / 2)
    judged = find(known, {"id": np.arange(200), "loss": np.zeros(200)})
    np.testing.assert_allclose(judged.scored.losses.numpy(), held / 2, atol=2e-3)
    assert judged.recorded is not None
    np.testing.assert_array_equal(judged.recorded[:, 0], held)


@pytest.mark.parametrize(
    ("ids", "losses"),
    [
        (torch.tensor([0, 1]), torch.tensor([1.0, 3.0], dtype=torch.bfloat16, requires_grad=True)),
        (np.array([0, 1]), np.array([1.0, 3.0], dtype=np.float16)),
        (np.array([0, 1]), [1.0, 3.0]),
    ],
)
def test_losses_from_elsewhere_are_taken_in(ids: Any, losses: Any) -> None:
    """As a serving process has them, with or without gradient."""
    known = known_by(None, LossRecord(capacity=100))
    lookups_of(known).take_in(ids, losses)
    assert find(known, rows(0, 2)).scored.losses.tolist() == [1.0, 3.0]


def test_losses_from_elsewhere_are_checked() -> None:
    """One each, for a loader that has a record."""
    known = known_by(None, LossRecord(capacity=100))
    with pytest.raises(ValueError, match=r"losses must have shape \(2,\), one per id, got \(3,\)"):
        lookups_of(known).take_in(np.arange(2), np.ones(3))
    with pytest.raises(RecordError, match="floating-point"):
        lookups_of(known).take_in(np.arange(2), np.arange(2))
    loader = SelectingLoader([rows(0, 2)], score=Counted(), sampling_rate=0.5)
    with pytest.raises(ValueError, match="there is no record to observe losses; construct with re"):
        loader.observe(np.arange(2), np.ones(2))


@pytest.mark.parametrize(
    ("score", "record", "where", "error", "message"),
    [
        (None, None, None, ValueError, "losses must come from somewhere: pass score=, record=, or"),
        (None, LossRecord(capacity=16), None, ValueError, 'record= needs ids=: .*ids="__key__"'),
        ("model", None, None, TypeError, "score must be a function of a batch, got str"),
        (None, {}, "id", TypeError, "record must be a LossRecord, got dict"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    score: Any, record: Any, where: Any, error: type[Exception], message: str
) -> None:
    """With what was expected and what came."""
    with pytest.raises(error, match=message):
        KnownLosses(score, lookups_for(record, where, None, None))


def test_what_is_guessed_is_marked() -> None:
    """A mean that stands for an unknown loss is nobody's loss, and no metric may count it."""
    known = known_by(None, LossRecord(capacity=100))
    lookups_of(known).observe(np.array([0, 2]), np.array([1.0, 3.0]))
    guessed = find(known, rows(0, 4)).guessed
    assert guessed is not None
    assert guessed.tolist() == [False, True, False, True]
    assert find(known, rows(0, 1)).guessed is None
    assert find(known_by(Counted(), LossRecord(capacity=16)), rows(0, 4)).guessed is None


@pytest.mark.parametrize("score", [None, Counted()])
@pytest.mark.parametrize("serves", [False, True])
def test_a_record_that_knows_nobody_is_warned_of(
    serves: bool, score: Counted | None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A folder or an id that was misnamed looks like a stream of new instances.

    Where candidates are scored, that is what a first pass looks like without anybody who serves.
    """
    for name in ("known", "strange"):
        each = known_by(score, LossRecord(capacity=50_000))
        if serves:
            lookups_of(each).follow(tmp_path / name)
        if name == "known":
            lookups_of(each).observe(np.arange(1000), np.ones(1000))
        for start in range(0, 30_000, 1000):
            find(each, rows(start, 1000))
    told = [r.message for r in caplog.records if "is in the record" in r.message]
    if score is not None and not serves:
        assert not told
        return
    (message,) = told
    first = "10000" if score else "1000"
    assert f"none of the first {first} candidates is in the record, so they" in message
    assert ("are all scored" if score else "count as equal") in message
    assert ("is serving= the folder that servers write to" in message) is serves
