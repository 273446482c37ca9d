"""The page that a finished run leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adasel_stream.charts import Series, line_chart
from adasel_stream.demo.learner import BATCH_SIZE, LEARNING_RATE
from adasel_stream.demo.plan import ADASELECTION, LABELS, PAINTS, SCORING, SERVING, UNIFORM
from adasel_stream.demo.progressive import BLOCKS, Progressive, running_difference
from adasel_stream.demo.summary import HEADERS, Served, Summary, row
from adasel_stream.report import Section, Tile, render_report, run_sections, table
from adasel_stream.runlog import read_run_log

__all__ = ["write_report"]

_X_LABEL = "flights seen"
_SMOOTHED_BLOCKS = 5
"""Calibrations are shown over so many blocks; single ones differ too much to be read."""

_PASSES = (
    "Passes are forward passes of one flight, a backward pass counted as two; seconds are the "
    "processor's."
)
_LEARNING = "Is the model learning?"
_TIMES = "Where did the time go?"

_SUBTITLE = (
    "{:,} flights out of New York in 2013, in order of departure; the same network trained on "
    "different parts of the stream"
)


def write_report(
    path: Path,
    summary: Summary,
    progressive: Mapping[str, Progressive],
    logs: Mapping[str, Path],
    facts: Mapping[str, Any],
    elapsed_s: float,
) -> None:
    """Write `report.html`: verdict, figures, charts and where they come from.

    Args:
        path: file to write.
        summary: the result.
        progressive: losses of each arm, by name.
        logs: run log of each arm, by name.
        facts: what is known of the data.
        elapsed_s: wall time of the run, in seconds.

    Raises:
        OSError: a log cannot be read or the file not be written.
    """
    records = {LABELS[name]: read_run_log(log).records for name, log in logs.items()}
    paints = {LABELS[name]: PAINTS[name] for name in logs}
    of_all_logs = run_sections(records, paints=paints, samples="flights")
    render_report(
        path,
        title="Which flights will be late?",
        subtitle=_SUBTITLE.format(summary.rows),
        verdict=summary.verdict,
        tiles=_tiles(summary),
        sections=[
            _figures(summary),
            _differences(summary, progressive),
            _calibration(progressive, summary.rows),
            *_of_interest(of_all_logs, summary),
            _data(facts),
        ],
        facts=_facts(facts, elapsed_s),
    )


def _of_interest(sections: Sequence[Section], summary: Summary) -> list[Section]:
    """Leave out what other runs than the subject choose; most of it looks like what they see."""
    dull = tuple(f"({LABELS[name]})" for name in summary.figures if name != summary.subject)
    kept = [section for section in sections if not section.heading.endswith(dull)]
    more = {_TIMES: _of_times(summary)}
    if summary.served is not None:
        more[_LEARNING] = (
            f" Of {LABELS[SERVING]!r} it is the loss of the older model that predicted the flight."
        )
    return [replace(one, text=one.text + more.get(one.heading, "")) for one in kept]


def _of_times(summary: Summary) -> str:
    """Say which seconds are counted in the table."""
    scoring = ADASELECTION if summary.served is None else SCORING
    words = (
        f"Only {LABELS[scoring]!r} scores flights to choose among them; in the other runs scoring "
        "and selecting serve this comparison and are not counted in the table."
    )
    if summary.served is None:
        return words
    return (
        f"{words} In {LABELS[SERVING]!r}, score is looking up losses and is counted with select, "
        "checkpoint is publishing models, and other is the comparison."
    )


def _tiles(summary: Summary) -> list[Tile]:
    ours, uniform = summary.figures[summary.subject], summary.figures[UNIFORM]
    difference = summary.against[UNIFORM]
    saved = 1 - summary.share_of_full(summary.subject, measured=True)
    expected = 1 - summary.share_of_full(summary.subject, measured=False)
    return [
        Tile("loss", f"{ours.loss:.4f}", f"uniform: {uniform.loss:.4f}"),
        Tile(
            "minus uniform's", f"{difference.mean:+.4f}", f"± {2 * difference.error:.4f} (2 s.e.)"
        ),
        Tile("time saved", f"{saved:.0%}", f"of full training; {expected:.0%} of its passes"),
        Tile("predicted / actual", f"{ours.calibration:.3f}", "1 is right"),
        Tile("trained on", f"{ours.trained / summary.rows:.1%}", f"{ours.trained:,} flights"),
    ]


def _figures(summary: Summary) -> Section:
    told = _by_scoring(summary) if summary.served is None else _by_serving(summary, summary.served)
    words = f"{summary.cost} {told} One learning rate serves all; it was chosen for uniform."
    rows = [row(summary, name) for name in summary.figures]
    return Section("What came out?", words, (table(HEADERS, rows),))


def _by_scoring(summary: Summary) -> str:
    extra = summary.figures[UNIFORM].accounting_s
    return (
        f"{_PASSES} AdaSelection and uniform make the same number of updates; uniform, same cost, "
        "makes as many as AdaSelection's passes would pay for if nothing had to be scored; full "
        "training takes every flight and shows the ceiling.\n\n"
        "Only AdaSelection has to score flights to choose among them. The others go through "
        "scoring for this comparison alone, which is not counted as their cost (uniform: "
        f"{extra:.1f} s more)."
    )


def _by_serving(summary: Summary, served: Served) -> str:
    extra = summary.figures[summary.subject].accounting_s
    known = "all" if served.unknown == 0 else f"{1 - served.unknown / summary.rows:.2%}"
    return (
        f"{_PASSES} AdaSelection and uniform make the same number of updates; uniform, scoring's "
        "cost, makes as many as the passes of AdaSelection with scoring would pay for; full "
        "training takes every flight and shows the ceiling.\n\n"
        f"A second process served {served.rows:,} flights with the model published last, every "
        f"{served.turn_rows:,} flights, and wrote their losses down; the trainer knew {known} of "
        "them when it chose. Those forward passes "
        "are made for the predictions, whoever trains, and are not counted as training "
        f"({served.seconds:.1f} s of the other process). Nor is scoring for this comparison alone "
        f"({extra:.1f} s more). Seconds include choosing itself, which a network as small as this "
        "one feels."
    )


def _differences(summary: Summary, progressive: Mapping[str, Progressive]) -> Section:
    x = _middles(summary.rows)
    base = progressive[UNIFORM]
    lines: list[Series] = []
    for name, one in progressive.items():
        if name == UNIFORM:
            continue
        mean, error = running_difference(one, base)
        line = Series(LABELS[name], x, mean.tolist(), paint=PAINTS[name])
        if name == summary.subject:
            low, high = (mean - 2 * error).tolist(), (mean + 2 * error).tolist()
            line = replace(line, low=low, high=high)
        lines.append(line)
    chart = line_chart(
        lines,
        label="loss so far of each run minus that of uniform",
        x_label=_X_LABEL,
        y_label="loss so far, minus uniform's",
        reference=(0.0, LABELS[UNIFORM]),
    )
    words = (
        "Below the line a run does better than uniform with as many updates as AdaSelection. The "
        "band is two standard errors wide on either side; they come from how "
        f"the difference varies over {BLOCKS} blocks of the stream, about a week each, and do not "
        "include what other seeds would change."
    )
    return Section("Was it better all along?", words, (chart,))


def _calibration(progressive: Mapping[str, Progressive], rows: int) -> Section:
    x = _middles(rows)
    lines = [
        Series(LABELS[name], x, one.calibrations(_SMOOTHED_BLOCKS).tolist(), paint=PAINTS[name])
        for name, one in progressive.items()
    ]
    chart = line_chart(
        lines,
        label="running predicted by actual rate of late flights, by run",
        x_label=_X_LABEL,
        y_label="predicted / actual rate of late flights",
        reference=(1.0, "right"),
    )
    words = (
        "The weights of the selected flights keep the predicted rate true although hard ones are "
        "selected more often. Weeks that differ from those before push all runs off alike. The "
        f"lines are running rates over {_SMOOTHED_BLOCKS} of {BLOCKS} blocks."
    )
    return Section("Are its predictions calibrated?", words, (chart,))


def _data(facts: Mapping[str, Any]) -> Section:
    source = facts["source"]
    words = (
        f"{source['package']} {source['version']} from PyPI, licence {source['licence']} as its "
        f"metadata says. Of {facts['flights_in_source']:,} flights "
        f"{facts['dropped']['never_arrived']:,} were cancelled or diverted; nobody knows how late "
        f"they would have been, so they are left out. Of the others "
        f"{facts['without_weather']:,} have no weather report for their hour.\n\n"
        "The network sees what the timetable and the weather of the hour say, never the delay at "
        "departure. Every flight is scored before the network is trained on it. A flight's "
        "outcome counts as known at once; in operation it arrives some hours later."
    )
    return Section("What is the data?", words)


def _facts(facts: Mapping[str, Any], elapsed_s: float) -> dict[str, str]:
    return {
        "samples of an update": str(BATCH_SIZE),
        "optimizer": f"Adam, learning rate {LEARNING_RATE:g}",
        "policy": "auto",
        "data": f"{facts['source']['package']} {facts['source']['version']}",
        "wall time": f"{elapsed_s:.0f} s",
    }


def _middles(rows: int) -> list[float]:
    return [(block + 0.5) * rows / BLOCKS for block in range(BLOCKS)]
