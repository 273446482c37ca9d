import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.charts import Series, area_chart, bar_chart, histogram_chart, line_chart
from adasel_stream.metrics import Metrics
from adasel_stream.paying import Gain, Watch
from adasel_stream.report import Section, Tile, render_report, report_html, run_sections, table
from adasel_stream.report.runs import _running_means

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "</svg><script>alert('1')</script> \"&amp;\" \x00\x1b ]]> <!--"


class Checked(HTMLParser):
    """Parses a page strictly: every element is closed where it must be."""

    def __init__(self, page: str) -> None:
        """Parse `page`."""
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an element."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an element that closes itself."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        """Check that it closes the innermost element."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.text += data


def charts(name: str) -> list[str]:
    """Return one chart of each kind whose every text is `name`."""
    x = [0.0, 1.0, 2.0]
    line = Series(name, x, [1.0, 2.0, 3.0], low=[0.5, 1.0, 2.0], high=[2.0, 3.0, 4.0])
    shares = {name: [0.2, 0.5, 0.7], "rest": [0.8, 0.5, 0.3]}
    counts = {name: [1, 2, 3], "b": [1, 0, 1]}
    return [
        line_chart([line], label=name, x_label=name, y_label=name, reference=(1.0, name)),
        area_chart(x, shares, label=name, x_label=name, y_label=name),
        histogram_chart([0.1, 1.0], counts, label=name, x_label=name, y_label=name),
        bar_chart({name: {name: 1.0, "train": 2.0}}, label=name, x_label=name, unit=name),
    ]


def page_of(name: str) -> str:
    """Return a page whose every text is `name`."""
    return report_html(
        title=name,
        subtitle=name,
        verdict=name,
        tiles=[Tile(name, name, name)],
        sections=[Section(name, name, (*charts(name), table([name, name], [[name, name]])))],
        facts={name: name},
    )


def test_a_report_is_one_well_formed_file(tmp_path: Path) -> None:
    """It parses, holds what it was given, and replaces what was there."""
    path = tmp_path / "report.html"
    path.write_text("old")
    render_report(
        path,
        title="Flights",
        verdict="Selection paid.",
        tiles=[Tile("cost saved", "47 %", "estimated 50 %")],
        sections=[Section("Losses", "first\n\nsecond", tuple(charts("loss")))],
    )

    page = Checked(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") >= 4
    assert page.tags.count("h1") == 1
    assert page.tags.count("h2") == 1
    for words in ("Selection paid.", "47 %", "estimated 50 %", "first", "second"):
        assert words in page.text
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_report_needs_no_network_and_no_script() -> None:
    """Nothing on the page can load or run anything."""
    page = page_of("plain")
    checked = Checked(page)

    assert not {"script", "link", "img", "iframe", "object", "use"} & set(checked.tags)
    assert not {name for name, _ in checked.attributes} & {"href", "src", "srcset", "xlink:href"}
    assert not [name for name, _ in checked.attributes if name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page
    assert not re.findall(r"(?:https?:)?//[a-z]", page)


def test_hostile_names_stay_text() -> None:
    """A name with markup, quotes or control characters adds no element and no attribute."""
    plain, hostile = Checked(page_of("x" * len(HOSTILE))), Checked(page_of(HOSTILE))

    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert "<script>alert" in hostile.text
    assert "\x00" not in page_of(HOSTILE)
    assert "\x1b" not in page_of(HOSTILE)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=50))
@settings(max_examples=25, deadline=None)
def test_charts_are_valid_xml_for_any_name(name: str) -> None:
    """Whatever a method or a run is called, the picture can be parsed."""
    for chart in charts(name):
        root = ElementTree.fromstring(chart)
        assert root.tag == "svg"
        assert root.get("role") == "img"


numbers = st.floats(-1e12, 1e12) | st.just(math.nan) | st.just(math.inf)


@given(st.lists(numbers, max_size=30), st.sampled_from(["", "%"]))
@settings(max_examples=50, deadline=None)
def test_a_line_chart_of_any_numbers_stays_in_its_frame(y: list[float], unit: str) -> None:
    """No coordinate is NaN or infinite, whatever the values are, none at all included."""
    x = list(range(len(y)))
    chart = line_chart([Series("any", x, y)], label="any", x_label="x", y_label="y", y_unit=unit)
    ElementTree.fromstring(chart)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', chart)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_areas_always_fill_the_whole(parts: list[list[float]]) -> None:
    """Shares are scaled to one, and unusable values count as nothing."""
    shares = {f"part {number}": values for number, values in enumerate(parts)}
    chart = area_chart([0, 1, 2], shares, label="any", x_label="x", y_label="y")
    assert not re.search(r'="[^"]*\b(nan|inf)\b', chart)


def test_a_long_series_is_thinned_but_keeps_its_end() -> None:
    """A picture of a million steps stays small, and shows the last value."""
    x = np.arange(100_000.0)
    chart = line_chart(
        [Series("long", x.tolist(), (x * 2).tolist())], label="long", x_label="x", y_label="y"
    )
    assert len(chart) < 20_000
    assert ">199,998</tspan>" in chart


def test_a_gap_is_drawn_where_a_value_is_missing() -> None:
    """Two strokes, not a line through the missing value."""
    line = Series("gap", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 2.0, 1.0])
    chart = line_chart([line], label="gap", x_label="x", y_label="y")
    strokes = re.findall(r'd="(M[^"]*)"', chart)
    assert any(stroke.count("M") == 2 and stroke.count("L") == 2 for stroke in strokes)


def test_bars_show_parts_and_totals() -> None:
    """Each part is named in the legend and each row ends with its sum."""
    bars = {"ours": {"score": 10.0, "train": 30.5}, "uniform": {"train": 31.0}}
    chart = bar_chart(bars, label="time", x_label="seconds")
    words = " ".join(ElementTree.fromstring(chart).itertext())
    for one in ("ours", "uniform", "score", "train", "40.5 s", "31.0 s"):
        assert one in words
    assert ">30.5 s</text>" in chart
    assert chart.count(">31.0 s</text>") == 1  # the only part of a bar is its total


def test_a_part_of_nothing_is_left_out_of_the_legend_alone() -> None:
    """Charts of the same parts have the same colours, whichever of them happened."""
    more = {"score": 1.0, "decode": 2.0, "train": 3.0}
    both = bar_chart({"ours": more}, label="time", x_label="s")
    fewer = bar_chart({"ours": more | {"decode": 0.0}}, label="time", x_label="s")
    assert ">decode<" in both
    assert "decode" not in fewer
    train = re.compile(r"fill:(var[^;<]*);stroke[^>]*><title>train: 3.00 s")
    assert train.findall(both) == train.findall(fewer) != []


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_bars_refuse_amounts_that_are_none(amount: float) -> None:
    """A negative or unknown time is a mistake of the caller."""
    with pytest.raises(ValueError, match="finite and at least 0"):
        bar_chart({"row": {"part": amount}}, label="time", x_label="s")


def test_parts_of_different_lengths_are_refused() -> None:
    """Mismatched inputs are named, not drawn."""
    with pytest.raises(ValueError, match="as many values as positions"):
        line_chart([Series("a", [0, 1], [1.0])], label="a", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="one a position"):
        area_chart([0, 1], {"a": [1.0]}, label="a", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="3 buckets"):
        histogram_chart([0.1, 1.0], {"a": [1, 2]}, label="a", x_label="x")
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b"], [["only one"]])


def run_log(steps: int, **options: float) -> list[dict[str, object]]:
    """Return the snapshots of a short run with real metrics."""
    metrics = Metrics(["big_loss", "uniform"], sampling_rate=0.5, batch_size=4, policy="paper")
    random = np.random.default_rng(0)
    records = []
    for step in range(steps):
        seen = random.lognormal(mean=-0.1 * step, size=8).astype(np.float32)
        weights = np.array([0.5 + 0.4 * step / steps, 0.5 - 0.4 * step / steps])
        metrics.samples_seen += 8
        metrics.samples_selected += 4
        metrics.record_lookups["hit"] += int(options.get("hits", 0))
        with metrics.phase("train"):
            metrics.observe_selection(seen, seen[:4], np.ones(4), weights, weights, weights)
        metrics.observe_step(0.01)
        records.append(metrics.snapshot())
    return records


def test_a_run_log_becomes_sections() -> None:
    """Loss, weights, picks, rate, record and time are drawn from snapshots alone."""
    sections = run_sections({"ours": run_log(5, hits=3)})

    assert [section.heading for section in sections] == [
        "Is the model learning?",
        "Which methods does it trust?",
        "What does it pick?",
        "How much is trained on?",
        "Does the record help?",
        "Where did the time go?",
    ]
    page = Checked(report_html(title="run", verdict="", sections=sections))
    assert "big_loss" in page.text


def test_a_run_that_watches_itself_shows_whether_it_pays() -> None:
    """The gain with its interval, falls back by their reasons, and rows that were dropped."""
    metrics = Metrics(["big_loss"], sampling_rate=0.5, batch_size=4, policy="auto")
    records: list[dict[str, Any]] = []
    for step, reason in enumerate(("", "", "drift", "", "no_gain")):
        before = records[-1]["fallback_ratio"] if records else {}
        was = next((why for why, there in before.items() if there), "")
        metrics.samples_seen += 8
        metrics.samples_dropped["nonfinite_loss"] += 2
        gain = Gain(0.3, 0.2, 0.4) if step else Gain(math.nan, math.nan, math.nan)
        metrics.observe_watch(was, Watch(reason=reason), gain)  # type: ignore[arg-type] # one of them
        metrics.observe_step(0.01)
        records.append(metrics.snapshot())
    sections = run_sections({"ours": records, "uniform": run_log(4)})
    (section,) = [one for one in sections if one.heading == "Is it paying?"]
    assert "because of no_gain 1, drift 1, and 1 times back again; evenly now" in section.text
    assert "10 rows dropped because their loss was not finite" in section.text
    assert ">30.0 %<" in section.figures[0]
    assert "uniform sampling" in section.figures[0]


def test_several_runs_share_the_charts_they_can() -> None:
    """Two arms are two lines of one chart, and what belongs to one arm names it."""
    sections = {s.heading: s for s in run_sections({"ours": run_log(4), "uniform": run_log(4)})}

    learning = sections["Is the model learning?"].figures[0]
    assert ">ours<" in learning
    assert ">uniform<" in learning
    assert "Which methods does it trust? (ours)" in sections
    assert "Does the record help?" not in sections


def test_runs_and_samples_are_called_and_painted_as_the_caller_wants() -> None:
    """Two pages can show a run in one colour, and no page mixes two words for its samples."""
    logs = {"ours": run_log(4, hits=3), "uniform": run_log(4)}
    sections = run_sections(logs, paints={"ours": 4, "uniform": 2}, samples="flights")
    figures = "".join(figure for section in sections for figure in section.figures)
    assert "flights seen" in figures
    assert "samples" not in figures + "".join(section.text for section in sections)
    learning = sections[0].figures[0]
    assert re.findall(r"fill:none;stroke:var\(--series-(\d)", learning) == ["2", "4", "4", "2"]


def test_losses_are_running_means_over_a_tenth_of_the_run() -> None:
    """Single records differ too much to be read; the first ones have what there is."""
    losses = [1.0] * 10 + [3.0] * 11
    total = 0.0
    records: list[dict[str, object]] = []
    for step, loss in enumerate(losses):
        total += 8 * loss
        held = {"counts": [8 * (step + 1)], "sum": total, "bounds": []}
        records.append({"samples_seen_total": 8 * (step + 1), "loss": {"seen": held}})
    means = list(_running_means(records))
    assert [mean for _, mean in means] == [1.0] * 9 + [2.0] + [3.0] * 10
    assert [seen for seen, _ in means] == [8 * step for step in range(2, 22)]


def test_a_log_without_numbers_gives_no_section() -> None:
    """Nothing is drawn from an empty log, or from lines that are no snapshots."""
    assert run_sections({}) == []
    assert run_sections({"ours": [], "other": [{"event": "started"}]}) == []


def test_what_a_resume_rolled_back_is_not_drawn() -> None:
    """A killed run's lines after its last checkpoint are no part of the history."""
    records = run_log(6)
    killed = [*records[:5], *records[2:]]
    assert run_sections({"ours": killed}) == run_sections({"ours": records})
