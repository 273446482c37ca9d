"""What is told of a record is what the record holds, read from its files in bounded memory."""

import io
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from adasel_stream.inspection.bars import plain_lines, showing
from adasel_stream.inspection.histograms import loss_bounds
from adasel_stream.inspection.instances import INSTANCE, ORDERS, Order, extremes, find
from adasel_stream.inspection.listing import LEGEND, listing, lookups
from adasel_stream.inspection.numbers import numbers
from adasel_stream.inspection.overview import overview
from adasel_stream.inspection.rich_bar import rich_bar
from adasel_stream.inspection.sketch import Sketch
from adasel_stream.inspection.survey import SHARES, Survey, survey
from adasel_stream.inspection.wording import age_words, aligned, bar, plain, share_words, size_words
from adasel_stream.keys import instance_ids
from adasel_stream.record import LossRecord
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.known import Items
from adasel_stream.record.snapshots.files import read_manifest, write_manifest
from tests.kept_records import files_of, kept, learn, rank_folder
from tests.record_model import Clock

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
SLOTS = 40_000
UNIT_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "y": 31_557_600}


def save_three_times(record: LossRecord, clock: Clock, first_id: int = 0) -> None:
    """Save a base and two deltas that have ids in common."""
    rng = np.random.default_rng(first_id)
    for start, stop in ((0, 1000), (700, 1100), (1000, 1500)):
        learn(record, rng, first_id + np.arange(start, stop))
        clock.now_s += 5_000
        record.save()


@pytest.fixture
def record(tmp_path: Path) -> Items:
    """Keep a record in a folder of the test's own and return what it holds."""
    clock = Clock()
    with kept(tmp_path, SLOTS, clock=clock) as record:
        save_three_times(record, clock)
        return record.items()


def test_survey_counts_each_id_once_with_its_last_row(tmp_path: Path, record: Items) -> None:
    """Quantiles, ages, counts and versions are those of the record, not of its files."""
    seen = survey(tmp_path)
    assert seen.entries == len(record.ids) == 1500
    assert len(seen.manifests[0][1].rows) == 3
    for sketch, values in (
        (seen.last, record.losses),
        (seen.ema, record.ema),
        (seen.age_s, record.age_s),
        (seen.count, record.counts),
    ):
        exact = np.quantile(values, SHARES, method="inverted_cdf")
        assert sketch.quantiles(SHARES) == pytest.approx(exact.tolist(), rel=1 / 512)
    assert seen.versions.tolist() == np.bincount(record.versions, minlength=2**16).tolist()
    assert seen.ages[:-1].sum() == 1500


def test_survey_adds_up_all_ranks(tmp_path: Path) -> None:
    """Two ranks' rows, slots, counters and cursors are told as one record's."""
    for rank in (0, 1):
        clock = Clock()
        with kept(tmp_path, SLOTS, rank=rank, world_size=2, clock=clock) as record:
            record.cursors["writer"] = (5, 10 * rank)
            save_three_times(record, clock, first_id=10_000 * rank)
            record.lookup(np.arange(3))
            record.save()
    seen = survey(tmp_path)
    assert (seen.entries, seen.capacity, seen.record_bytes) == (3000, 2 * SLOTS, 48 * SLOTS)
    assert seen.counters["hits"] + seen.counters["misses"] == 6
    assert seen.cursors == {"writer": (5, 10)}
    page = overview(seen, now_s=0.0)
    assert "2 of 2" in page
    assert "rank-00001-of-00002/base-" in page


def test_survey_of_a_full_record_says_at_most(tmp_path: Path) -> None:
    """Once ids made room, the files alone do not tell how many are left."""
    with kept(tmp_path, capacity=1000) as record:
        learn(record, np.random.default_rng(0), np.arange(500))
        record.save()
        assert survey(tmp_path).exact
        learn(record, np.random.default_rng(0), np.arange(5000))
        record.save()
        held = len(record)
    seen = survey(tmp_path)
    assert not seen.exact
    assert seen.entries >= held
    page = overview(seen, now_s=0.0)
    assert "at most 1,000 in 1,000 slots (100%)\n" in page
    assert f"files hold {seen.entries:,}; some may be forgotten, having made room" in page


def test_record_that_was_never_saved_is_told_as_empty(tmp_path: Path) -> None:
    """A rank that was killed in its first snapshot leaves a manifest of nothing."""
    with kept(tmp_path) as record:
        record.save()
    manifest = read_manifest(rank_folder(tmp_path))
    nothing = replace(manifest, generation=0, files=(), position={"cursors": {}})
    write_manifest(rank_folder(tmp_path), nothing)
    seen = survey(tmp_path)
    page = overview(seen, now_s=0.0)
    assert "0 in 4,000 slots (0%)" in page
    assert "not yet" in page
    assert numbers(seen, now_s=0.0)["quantiles"]["last"] == {}


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_extremes_are_those_of_the_whole_record(
    tmp_path: Path, record: Items, order: Order, lowest: bool
) -> None:
    """The first 30 in any order are the first of all ids sorted, with what the record says."""
    columns: dict[Order, npt.NDArray[np.generic]] = {
        "loss": record.losses,
        "ema": record.ema,
        "age": record.age_s,
        "count": record.counts,
    }
    ranked = np.sort(columns[order])
    expected = ranked[:30] if lowest else ranked[::-1][:30]
    first = extremes(tmp_path, order, 30, lowest=lowest)
    rows = [int(np.flatnonzero(record.ids == id_)[0]) for id_ in first["id"].tolist()]
    assert columns[order][rows].tolist() == expected.tolist()
    assert len(set(rows)) == 30
    assert first["loss"].tolist() == record.losses[rows].tolist()
    assert first["ema"].tolist() == record.ema[rows].tolist()
    assert first["count"].tolist() == record.counts[rows].tolist()
    assert first["version"].tolist() == record.versions[rows].tolist()


def test_extremes_of_few_ids_are_all_of_them(tmp_path: Path, record: Items) -> None:
    """More rows than there are ids is no error."""
    assert sorted(extremes(tmp_path, "loss", 10_000)["id"].tolist()) == sorted(record.ids.tolist())


def test_find_gives_exact_ids_and_leaves_unknown_ones_out(tmp_path: Path) -> None:
    """Integer ids at both ends of int64 and ids of strings are found, others are not there."""
    ids = [-(2**63), 2**63 - 1, 7, *instance_ids(["a/b.jpg"]).tolist()]
    with kept(tmp_path) as record:
        record.update(np.array(ids), np.array([1.0, 2.0, 3.0, 4.0]))
        record.save()
    found = find(tmp_path, np.array([*ids, 8]))
    losses = dict(zip(found["id"].tolist(), found["loss"].tolist(), strict=True))
    assert losses == dict(zip(ids, [1.0, 2.0, 3.0, 4.0], strict=True))


def test_survey_in_use_does_not_disturb_the_owner(tmp_path: Path) -> None:
    """A record is looked into while a trainer has it open, and is saved again afterwards."""
    with kept(tmp_path) as record:
        record.update(np.arange(10), np.ones(10))
        record.save()
        assert survey(tmp_path).entries == 10
        record.update(np.arange(20), np.ones(20))
        record.save()
        assert survey(tmp_path).entries == 20


def test_page_fits_a_hundred_columns(tmp_path: Path, record: Items) -> None:
    """However large the numbers and long the names are, no line is longer."""
    ((_, manifest),) = survey(tmp_path).manifests
    files = [replace(file, rows=2**34, bytes=2**40) for file in manifest.rows]
    pending = replace(files[0], name="pending-000000000003.parquet", kind="pending")
    large = replace(
        manifest,
        **{"capacity": 2**34, "seed": 2**64 - 1, "world_size": 1024, "layout": 2**31},
        files=(*files, pending),
        position=manifest.position
        | {"cursors": {"w" * 200: (2**62, 2**40), "\x1b[2J": (1, 1)}}
        | {"counts": {"stale_version": 2**63, "evicted": 2**63}}
        | {"evicted_ages": [2**40] * 10},
    )
    seen = Survey(Path("/record"), [(Path(f"rank-{r:05d}-of-01024"), large) for r in range(20)])
    values = np.zeros(4000, VALUE)
    values["last"] = np.float32(10.0) ** -np.linspace(-38, 38, 4000)
    values["ema"] = -values["last"]
    values["tick"] = 1 + np.arange(4000, dtype=np.uint32) * 1_000_000
    values["count"], values["version"] = 65_535, np.arange(4000)
    seen.add(Entries(np.arange(4000, dtype=np.uint64), values), now=2**32 - 1)
    page = overview(seen, now_s=1e10)
    assert max(map(len, page.splitlines())) <= 100
    assert "\x1b" not in page
    assert "more, see --json" in page


def test_instances_fit_a_hundred_columns() -> None:
    """The longest ids, names and numbers leave lines of at most 100 characters."""
    row = (-(2**63), -1.23456e-30, 1.23456e30, 2**32, 65_535, 65_535)
    instances = np.array([row], INSTANCE)
    lines = [*listing(instances), *lookups([("x" * 300, -(2**63)), ("b\n", 2)], instances)]
    assert max(map(len, [*lines, *LEGEND.splitlines()])) <= 100
    assert not any("\n" in line for line in lines)


def cut(value: float) -> float:
    """Keep the first ten binary digits of a number."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(math.trunc(fraction * 1024) / 1024, exponent)


@settings(deadline=None, max_examples=40)
@given(st.lists(FLOATS, max_size=60), st.lists(st.integers(-40, 40), min_size=1, unique=True))
def test_sketch_agrees_with_sorting(values: list[float], halves: list[int]) -> None:
    """Quantiles and counts are those of the values cut to ten binary digits."""
    sketch = Sketch()
    for part in (values[:7], values[7:]):
        sketch.add(np.array(part, np.float32))
    assert sketch.size == len(values)
    bounds = [half / 2 for half in sorted(halves)]
    assert sketch.below(bounds) == [sum(cut(v) < bound for v in values) for bound in bounds]
    if values:
        least, *told, greatest = sketch.quantiles([0, 0.2, 0.5, 0.9, 1])
        assert (least, greatest) == (min(values), max(values))
        exact = np.quantile(values, [0.2, 0.5, 0.9], method="inverted_cdf").tolist()
        assert told == pytest.approx(exact, rel=1 / 512)
    else:
        assert sketch.quantiles([0.5]) == []


@given(st.floats(0, 1e10))
def test_age_in_words_is_about_the_age(age_s: float) -> None:
    """The words are short, and off by at most a quarter, or half a second."""
    words = age_words(age_s)
    number, unit = words.split()
    told_s = float(number.replace(",", "")) * UNIT_S[unit]
    assert len(words) <= 7
    assert told_s == pytest.approx(age_s, rel=0.25, abs=0.5)


@given(st.integers(0, 2**62))
def test_size_in_words_is_about_the_size(size_bytes: int) -> None:
    """The words are right to a tenth of their unit, which leaves at most four digits before it."""
    number, unit = size_words(size_bytes).split()
    power = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB").index(unit)
    told = float(number.replace(",", ""))
    assert told <= 1024 or unit == "PiB"
    assert told == pytest.approx(size_bytes / 1024**power, abs=0.051)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_share_in_words_is_none_or_all_only_if_it_is(part: int, more: int) -> None:
    """No share that is there is told as 0%, none that lacks something as 100%."""
    assert share_words(part, part + more) != "100%"
    assert (share_words(part, part + more) == "0%") == (part == 0)
    assert share_words(more, more) == "100%"


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 60))
def test_bar_is_as_long_as_its_share(part: int, more: int, width: int) -> None:
    """A bar never leaves its place, grows with its share, and whatever is there is seen."""
    whole = part + more
    drawn = bar(part, whole, width)
    assert len(drawn) <= width
    assert len(drawn) >= math.floor(width * part / whole)
    assert bool(drawn) == (part > 0)
    assert bar(whole, whole, width) == "█" * width


@given(st.text())
def test_plain_text_can_be_written_anywhere(text: str) -> None:
    """Text for a terminal without Unicode keeps its length and can be encoded."""
    for encoding in ("ascii", "latin-1", "cp1252"):
        assert len(plain(text, encoding)) == len(text)
        plain(text, encoding).encode(encoding)


@given(FLOATS, FLOATS)
def test_bounds_of_a_histogram_ascend(one: float, other: float) -> None:
    """Whatever the quantiles are, there are 1 to 11 bounds, each above the one before."""
    bounds = loss_bounds(min(one, other), max(one, other))
    assert 1 <= len(bounds) <= 11
    assert bounds == sorted(set(bounds))


def test_histogram_of_equal_losses_has_two_cells(tmp_path: Path) -> None:
    """A record that holds one loss throughout is drawn all the same."""
    with kept(tmp_path) as record:
        record.update(np.arange(30), np.full(30, 2.0))
        record.save()
    page = overview(survey(tmp_path), now_s=0.0)
    assert "below 2" in page
    assert "from 2" in page


def test_numbers_are_the_page_s(tmp_path: Path, record: Items) -> None:
    """What machines read adds up to what the record holds."""
    told = json.loads(json.dumps(numbers(survey(tmp_path), now_s=time.time())))
    assert told["entries"] == sum(told["losses"]["last"]["counts"]) == len(record.ids)
    assert sum(told["versions"].values()) == sum(told["age_s"]["counts"]) == len(record.ids)
    assert told["quantiles"]["last"]["1.0"] == record.losses.max()
    assert told["disk_bytes"] == sum(file.stat().st_size for file in files_of(tmp_path))
    assert 0 <= told["snapshot_age_s"] < 600
    assert [file["kind"] for file in told["files"]] == ["base", "delta", "delta"]


def test_lines_of_progress_come_when_they_are_due() -> None:
    """Short work tells nothing, long work a line every five seconds, the end nothing."""
    clock = Clock()
    file = io.StringIO()
    show = plain_lines("reading", file, clock=clock)
    for done in range(1, 11):
        show(done * 1000, 10_000)
        clock.now_s += 2.5
    told = ["30%, 3,000", "50%, 5,000", "70%, 7,000", "90%, 9,000"]
    assert file.getvalue() == "".join(f"reading: {line} of 10,000 rows\n" for line in told)


def test_bar_on_a_terminal_shows_rows_and_is_gone_in_the_end() -> None:
    """While it works a bar counts rows; then its line is cleared."""
    file = io.StringIO()
    with rich_bar("reading", Console(file=file, force_terminal=True, width=90)) as show:
        show(1000, 4000)
    drawn = file.getvalue()
    assert "reading" in drawn
    assert "1000/4000" in drawn
    assert drawn.endswith("\x1b[2K")


def test_progress_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and pipes get lines without any control sequence."""
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with showing("reading") as show:
        show(1, 2)
    assert file.getvalue() == ""
    monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
    with showing("reading") as show:
        show(1, 2)
    assert "\x1b" in file.getvalue()


def test_columns_are_aligned() -> None:
    """Text stands on the left, numbers on the right, and nothing trails."""
    lines = aligned([["name", "", "rows"], ["a", "bb", "1"], ["b", "", ""]], left=1)
    assert lines == ["name      rows", "a     bb     1", "b"]
