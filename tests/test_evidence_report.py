"""What the evidence counts and shows, beside counts of a hand."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import merit, report, sections
from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.published import COLUMNS, TABLE_4
from benchmarks.evidence.standings import Standings
from benchmarks.evidence.store import Cell, Results, ResultsError
from benchmarks.evidence.tasks import TASKS

Rows = dict[Cell, dict[str, Any]]


def row(value: float, seconds: float = 1.0, ratio: float = 1.0) -> dict[str, Any]:
    """Give a row: half-way it is as good as 0.5, at the end as its value."""
    return {
        "updates": 10,
        "candidates": 100,
        "measure": "m",
        "value": value,
        "quality": {"m": value, "predicted / actual": ratio},
        "seconds": {"all": seconds, "train": seconds},
        "curve": [[5.0, seconds / 2, 0.5], [10.0, seconds, value]],
        "revision": "abc",
    }


def rows_of(task: str, values: dict[str, list[float]], rate: float = 0.2) -> Rows:
    """Give cells of contestants by their values of each seed."""
    return {
        Cell(task, name, 1.0 if name == "full" else rate, seed, "updates"): row(value)
        for name, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    }


ORDER = ("full", "uniform", "auto", "big_loss", "small_loss")


def standings(rows: Rows, higher: bool = True) -> Standings:
    """Look rows up; of tasks a and b higher or lower values are better."""
    return Standings(rows, {"a": higher, "b": higher}, ORDER)


def test_claims_are_those_of_a_hand() -> None:
    """One place where it is surely better, one where it is surely worse, one where who knows."""
    rows = {
        **rows_of("a", {"uniform": [1, 2, 3], "auto": [2, 3.1, 4.1], "big_loss": [2, 3, 4.3]}),
        **rows_of("a", {"uniform": [1, 2, 3], "auto": [0, 1.1, 2.1], "big_loss": [9, 9, 9]}, 0.5),
        **rows_of("b", {"uniform": [1, 2, 3], "auto": [2, 1.5, 3], "small_loss": [0, 0, 0]}),
    }
    counted = merit.claims(standings(rows), "auto", ["big_loss", "small_loss"])
    assert counted == merit.Claims(places=3, not_worse=2, better=1, near_best=2, compared=3)


def test_nobody_is_better_because_uniform_diverged() -> None:
    """It is no merit of theirs; who diverges is worse than who does not."""
    rows = rows_of("a", {"uniform": [1, 2, math.nan], "auto": [2, 3.1, 4], "full": [3, 4, 5]})
    rows |= rows_of("b", {"uniform": [1, 2, 3], "auto": [2, 3.1, math.nan]})
    both = standings(rows)
    assert merit.claims(both, "auto", []) == (2, 1, 0, 0, 0)
    assert merit.with_headroom(both, "auto") == (0, 0)
    assert merit.diverged(both, "uniform") == [("a", 0.2)]
    said = sections.headlines(both, [], [])
    assert any("diverged, so that nobody counts as better there: a at 0.2" in one for one in said)


def test_who_is_as_good_in_half_the_time_is_named() -> None:
    """Of the contestants other than full training, on the tasks that are asked for."""
    rows = rows_of("a", {"uniform": [0.2, 0.3], "full": [0.8, 0.9]})
    rows |= {Cell("a", "auto", 0.2, seed, "updates"): row(0.9, 0.4) for seed in range(2)}
    assert merit.soon(standings(rows), ["a"], 0.2) == [("auto", "a")]
    assert merit.soon(standings(rows), [], 0.2) == []


def test_headroom_is_where_full_training_is_better() -> None:
    """Two places with a gap, of which one is closed; where full training gains nothing none is."""
    rows = {
        **rows_of("a", {"uniform": [1, 2], "auto": [2, 3.1], "full": [3, 4.1]}),
        **rows_of("b", {"uniform": [1, 2], "auto": [2, 3.1], "full": [1, 1.9]}),
    }
    rows |= rows_of("a", {"uniform": [1, 2], "auto": [1, 2.5]}, 0.5)
    assert merit.with_headroom(standings(rows), "auto") == (1, 2)


def test_a_single_method_is_not_compared_with_itself() -> None:
    """Being near oneself is no merit."""
    rows = rows_of("a", {"uniform": [1, 2], "big_loss": [5, 6], "small_loss": [1, 1.5]})
    assert merit.claims(standings(rows), "big_loss", ["big_loss", "small_loss"]).near_best == 1
    assert merit.claims(standings(rows), "big_loss", ["big_loss"]).compared == 0


def test_one_seed_makes_no_place() -> None:
    """Nothing is counted of a place without an error, for or against."""
    rows = rows_of("a", {"uniform": [1], "auto": [2], "big_loss": [1]})
    assert merit.claims(standings(rows), "auto", ["big_loss"]).places == 0


def test_who_diverges_is_counted_against() -> None:
    """A run that ended in NaN is worse than uniform and not near the best."""
    rows = rows_of("a", {"uniform": [1, 2], "auto": [5, math.nan], "big_loss": [1, 2]})
    assert merit.claims(standings(rows), "auto", ["big_loss"]) == (1, 0, 0, 0, 1)


def test_ranks_are_averaged_over_rates_then_tasks() -> None:
    """Ranks of a hand: auto 1 and 2 at the rates of a, 1 on b."""
    rows = {
        **rows_of("a", {"uniform": [1], "auto": [3], "big_loss": [2]}),
        **rows_of("a", {"uniform": [1], "auto": [2], "big_loss": [3]}, 0.5),
        **rows_of("b", {"uniform": [1], "auto": [3]}),
    }
    looked = standings(rows)
    assert looked.ranks("a", ["uniform", "auto", "big_loss"]) == {
        "uniform": 3,
        "auto": 1.5,
        "big_loss": 1.5,
    }
    assert looked.overall_ranks(["uniform", "auto", "big_loss"]) == {"uniform": 2, "auto": 1}


def test_values_are_averaged_over_rates_by_seed() -> None:
    """The error is that of the seeds' averages, not of all values."""
    rows = {**rows_of("a", {"auto": [1, 3]}), **rows_of("a", {"auto": [3, 1]}, 0.5)}
    assert standings(rows).over_rates("a", "auto") == (2.0, 0.0)


def test_a_gap_needs_full_training_to_be_better() -> None:
    """Half of a gap is a half; where full training is no better there is none to close."""
    rows = rows_of("a", {"full": [9, 9.1], "uniform": [5, 5.1], "auto": [7, 7.1]})
    assert merit.gap_closed(standings(rows), "a", "auto", 0.2) == pytest.approx(0.5)
    assert math.isnan(merit.gap_closed(standings(rows, higher=False), "a", "auto", 0.2))


def test_time_to_quality_comes_from_the_curve() -> None:
    """The first test that is as good as full training counts, in its share of full's time."""
    rows = rows_of("a", {"full": [0.5, 0.5], "auto": [0.9, 0.4]})
    slow = Cell("a", "auto", 0.2, 1, "updates")
    rows[slow] = row(0.6, seconds=3.0)
    assert merit.reached(standings(rows), "a", "auto", 0.2) == (2, 2, 1.0)  # of 0.5 and 1.5
    better = rows_of("a", {"full": [0.95, 0.95], "auto": [0.9, 0.4]})
    seeds, times, share = merit.reached(standings(better), "a", "auto", 0.2)
    assert (seeds, times) == (2, 0)
    assert math.isinf(share)
    one = rows_of("a", {"full": [0.5] * 3, "auto": [0.9, 0.4, 0.4]})
    for seed in (1, 2):
        one[Cell("a", "auto", 0.2, seed, "updates")]["curve"] = [[10.0, 1.0, 0.4]]
    assert merit.reached(standings(one), "a", "auto", 0.2) == (3, 1, math.inf)


def test_calibration_is_held_against_uniforms() -> None:
    """By the mean ratio over seeds: 1.03 keeps to 1.02, 1.1 does not."""
    rows: Rows = {}
    for rate, ratio in ((0.2, 1.03), (0.5, 1.1)):
        for seed in (0, 1):
            rows[Cell("a", "uniform", rate, seed, "updates")] = row(1.0, ratio=1.02)
            rows[Cell("a", "auto", rate, seed, "updates")] = row(1.0, ratio=ratio)
    assert merit.calibrated(standings(rows), "auto") == (1, 2)
    assert merit.calibrated(standings({}), "auto") == (0, 0)


def test_equal_time_on_a_stream_is_read_off_uniform() -> None:
    """Who takes twice the time of uniform is compared with what uniform reaches in it."""
    rows: Rows = {}
    for seed in (0, 1):
        for name, rate, value, seconds in (
            ("uniform", 0.1, 1.0, 1.0),
            ("uniform", 0.4, 3.0, 4.0),
            ("full", 1.0, 4.0, 10.0),
            ("auto", 0.1, 2.5 + seed, 2.0),
        ):
            rows[Cell("a", name, rate, seed, "updates")] = row(value, seconds)
    share, difference = merit.against_uniform_in_time(standings(rows), "a", "auto", 0.1)
    assert share == pytest.approx(0.2)
    assert difference.value == pytest.approx(1.0)  # 2.5 and 3.5 against 2 half-way to 4 seconds


def test_every_name_of_the_paper_is_a_contestant() -> None:
    """Published numbers stand beside contestants and tasks that there are."""
    assert set(COLUMNS) <= set(CONTESTANTS)
    assert set(TABLE_4) <= set(TASKS)
    for task in TASKS.values():
        assert set(task.published) <= set(COLUMNS)


@pytest.fixture(name="results")
def some_results(tmp_path: Path) -> Results:
    """Give results of two tasks at two rates, of which some are missing."""
    results = Results(tmp_path / "r.parquet")
    for task in ("line", "click"):
        for place, name in enumerate(("full", "uniform", "auto", "big_loss", "loss_history")):
            for rate in (0.1, 0.5):
                for seed in range(3):
                    at = 1.0 if name == "full" else rate
                    value = 0.5 + 0.1 * place * (1 if task == "line" else -1) + 0.01 * seed * rate
                    cell = Cell(task, name, at, seed, "updates")
                    results.rows[cell] = {**cell._asdict(), **row(value, 1 + at)}
    cell = Cell("line", "auto", 0.1, 0, "time")
    results.rows[cell] = {**cell._asdict(), **row(0.4)}
    del results.rows[Cell("click", "big_loss", 0.1, 1, "updates")]
    for seed in range(3):
        del results.rows[Cell("click", "loss_history", 0.5, seed, "updates")]
    return results


def test_a_page_shows_all_there_is(results: Results, tmp_path: Path) -> None:
    """Every contestant and task is in it, tables are whole, and every image is there."""
    report.render(results, tmp_path / "docs")
    page = (tmp_path / "docs/results.md").read_text()
    for name in ("full", "uniform", "auto", "big_loss", "loss_history"):
        assert f"| {name} |" in page
    for task in ("line", "click"):
        assert f"### {task}\n" in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    images = re.findall(r"\]\((results/.*?\.svg)\)", page)
    assert sorted(images) == [
        f"results/{name}.svg" for name in ("click", "line", "phases", "ranks")
    ]
    for image in images:
        assert (tmp_path / "docs" / image).is_file()
    assert "nan" not in page.lower()


def test_images_stand_alone(results: Results, tmp_path: Path) -> None:
    """Each is an SVG of its own with colours for light and dark, no script and no link."""
    report.render(results, tmp_path / "docs")
    for image in (tmp_path / "docs/results").iterdir():
        text = image.read_text()
        assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme:dark" in text
        assert "<script" not in text
        assert "href" not in text


def test_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    """Without any result no page is written, and the file is named."""
    with pytest.raises(ResultsError, match=r"r\.parquet is missing, so there is nothing to show"):
        report.render(Results(tmp_path / "r.parquet"), tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_rendering_again_changes_nothing(results: Results, tmp_path: Path) -> None:
    """The same results make the same files."""
    contents: list[dict[str, bytes]] = []
    for _ in range(2):
        report.render(results, tmp_path / "docs")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "docs").rglob("*.*")})
    assert contents[0] == contents[1]


def test_time_counts_wins_and_losses_alike() -> None:
    """Over epochs at full training's time, on streams at uniform sampling's rate of that time."""
    equal = rows_of("a", {"uniform": [1, 2, 3], "auto": [0, 1.1, 2.1]})
    timed = {cell._replace(budget="time"): one for cell, one in equal.items()}
    streams = rows_of("b", {"uniform": [1, 2, 3], "auto": [2, 3.1, 4.1], "full": [1, 2, 3]})
    looked = standings({**timed, **equal, **streams})
    assert merit.in_time(looked, "auto", ["b"]) == (2, 1, 1)
    assert merit.in_time(looked, "auto", []) == (1, 0, 1)


def test_the_page_names_the_revision_of_each_rate() -> None:
    """One where all are of it; full training counts for none."""
    rows = rows_of("line", {"uniform": [1, 2], "auto": [1, 2], "full": [1, 2]})
    assert "; of revision abc. What" in report.page(Standings(rows, {"line": False}, ORDER))
    other = {
        cell: {**row, "revision": "def"}
        for cell, row in rows_of("line", {"uniform": [1, 2], "auto": [1, 2]}, 0.3).items()
    }
    text = report.page(Standings({**rows, **other}, {"line": False}, ORDER))
    assert "; of revision abc at 0.2, of revision def at 0.3. What" in text
