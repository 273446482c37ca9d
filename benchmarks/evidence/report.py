"""Render docs/results.md and its plots from the results."""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence import plots, sections
from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.standings import RATE, Standings
from benchmarks.evidence.store import Results
from benchmarks.evidence.tasks import TASKS

__all__ = ["render"]

METHOD = """\
`python -m benchmarks.evidence --data FOLDER` runs it all;
`benchmarks/evidence/README.md` says where the data is from. Every contestant has one fixed
configuration for all tasks. At a sampling rate r each of them makes the same number of updates on
batches of the same size, r times as many as full training, out of the same candidates in the same
order, from the same first weights. So values are compared by pairs of seeds: a number in brackets
is the difference to uniform sampling in standard errors of that difference, positive where the
contestant is better. Tasks over epochs are tested on the same rows after the last update, with the
learning rate decayed to 0 by a cosine within the updates that a contestant makes. A stream is read
once and in order, with a learning rate that stays, as a stream has no end; it is tested at 36
places on the 2,000 rows that come next, which nobody has seen, and the value is the mean over
them. The optimizer is SGD with momentum 0.9 at one learning rate a task. Times are processor time
of one thread: data, scoring, selection and training, not tests, nor the passes of a serving
process, nor the training of a reference model.
"""

CAVEATS = (
    "The networks are small, so that the grid takes hours on two cores; a forward pass is cheap"
    " in them beside the work of choosing, so that times of contestants that score all "
    "candidates look worse here than with large networks, and numbers of the paper's are not "
    "reached.",
    "With as many differences as here some exceed two standard errors by chance: of two "
    "contestants that are equal, with five seeds, about one difference in nine, half of them to"
    " either side.",
    "A run whose value is not finite has diverged: `-` stands for a mean with such a seed. Its "
    "difference is -∞, that of others to uniform sampling that diverged +∞, which counts as not "
    "worse, and for nobody as better.",
    "The best single method is picked after the fact, at each task and rate, by the values that"
    " it is then compared by. That flatters it.",
    "Single methods choose from as many candidates as make one batch (the window is the batch "
    "over the rate), also those of the paper and `paper` itself, where the paper chooses from "
    "each batch of candidates alone.",
    "Equal time is run by a few contestants, at one rate.",
    "`auto + serving` and `unbiased + serving` have losses of all candidates from a serving "
    "process whose model is up to 20 updates old; its passes are nobody's cost, since it serves"
    " anyhow. `auto + record` has only the losses of the trainer's own passes, and has nothing "
    "on streams that are read once.",
    "`infobatch rule` keeps as many rows as its rule says, so that it sees fewer candidates "
    "than the others for the same number of updates, and prunes only what it has trained on "
    "before: where the updates are less than an epoch it is full training at equal updates.",
    "`reducible_loss` is RHO. Its reference model, for which nothing is charged, was trained on"
    " rows that were kept aside, on a stream on its first tenth.",
)

STREAMERS = ("auto", "auto + serving", "unbiased", "unbiased + serving", "paper", "big_loss")
"""Contestants of the tables about streams and times."""


def render(results: Results, docs: Path) -> None:
    """Write results.md and the plots in results/ beside it.

    Args:
        results: what there is; tables leave out what is missing.
        docs: folder that is made where it is missing.

    Raises:
        ResultsError: there is nothing; no page is overwritten.
    """
    results.require()
    order = list(CONTESTANTS)
    higher = {name: task.better == "higher" for name, task in TASKS.items()}
    standings = Standings(results.rows, higher, order)
    images = docs / "results"
    images.mkdir(parents=True, exist_ok=True)
    for name, image in drawings(standings).items():
        (images / name).write_text(image, encoding="utf-8")
    (docs / "results.md").write_text(page(standings), encoding="utf-8")


def drawings(standings: Standings) -> dict[str, str]:
    """Draw every plot, by its file's name."""
    _, overall = sections.ranks_table(standings)
    own = [name for name, one in CONTESTANTS.items() if one.kind == "selected" and not one.single]
    drawn = {
        file_of(task): plots.standalone(
            plots.value_against_rate(standings, task, TASKS[task].measure)
        )
        for task in standings.tasks
        if _plotted(standings, task)
    }
    drawn["ranks.svg"] = plots.standalone(plots.rank_bars(overall, own))
    drawn["phases.svg"] = plots.standalone(plots.phase_bars(standings, RATE))
    return drawn


def file_of(task: str) -> str:
    """Name a task's plot.

    >>> file_of("fashion-10-wrong")
    'fashion-10-wrong.svg'
    """
    return re.sub(r"[^a-z0-9-]", "-", task) + ".svg"


def page(standings: Standings) -> str:
    """Write the whole page."""
    parts = ["# Results", _run(standings), *_method(), *_merit(standings), *_ranks(standings)]
    parts += [*_published(standings), *_times(standings), *_streams(standings)]
    parts += ["## Task by task"]
    for task in standings.tasks:
        parts += _task(standings, task)
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _run(standings: Standings) -> str:
    seeds = {cell.seed for cell in standings.rows}
    return (
        f"{len(standings.rows):,} runs: {len(standings.tasks)} tasks, "
        f"{len(standings.contestants)} contestants, {len(seeds)} seeds; "
        f"{_revisions(standings)}. What fell short is in the tables."
    )


def _revisions(standings: Standings) -> str:
    """Name the code of each rate; full training, at the rate 1, selects nothing."""
    rates: dict[str, set[float]] = {}
    for cell, row in standings.rows.items():
        if cell.contestant != "full":
            rates.setdefault(str(row["revision"]), set()).add(cell.rate)
    if len(rates) < 2:
        return f"of revision {', '.join(rates)}"
    return ", ".join(
        f"of revision {revision} at {', '.join(map(str, sorted(there)))}"
        for revision, there in sorted(rates.items(), key=lambda pair: min(pair[1]))
    )


def _method() -> list[str]:
    caveats = "\n".join(f"- {caveat}" for caveat in CAVEATS)
    return ["## How it was measured, and what to doubt", METHOD, caveats]


def _merit(standings: Standings) -> list[str]:
    singles = _singles()
    counted = "\n".join(
        f"- {line}."
        for line in sections.headlines(standings, singles, _of_kind(standings, "stream"))
    )
    return [
        "## What came out",
        f"Counted over {len(standings.places)} places, a place being a task at a rate:",
        counted,
        "The same of everyone:",
        sections.claims_table(standings, singles),
    ]


def _ranks(standings: Standings) -> list[str]:
    ranks, _ = sections.ranks_table(standings)
    return [
        "## Average ranks",
        "As in the paper's Table 4: the rank among all contestants, 1 the best, averaged over the "
        "rates. Those that cannot take part everywhere have no rank over all tasks, and full "
        "training, which makes more updates, is not ranked.",
        "![Average ranks](results/ranks.svg)",
        ranks,
    ]


def _published(standings: Standings) -> list[str]:
    there = [name for name in standings.tasks if TASKS[name].published]
    if not there:
        return []
    differ = "\n".join(f"- {name}: {TASKS[name].note}." for name in there)
    return [
        "## Beside the paper",
        "Tasks that the paper has as well. Networks, sizes and scales differ, so that the order of "
        "contestants may be compared and values may not. The paper's AdaSelection is the best of "
        "several variants and ranks are among all of them; here it is the policy `paper` as it "
        "stands, and ranks are among these nine.",
        differ,
        "Average ranks, Table 4:",
        sections.paper_ranks(standings),
        "Values averaged over the rates, Table 5:",
        sections.paper_values(standings, TASKS),
    ]


def _times(standings: Standings) -> list[str]:
    epochs = _of_kind(standings, "epochs")
    parts = [
        "## Time",
        "Processor time as a share of full training's, averaged over the tasks:",
        sections.costs_table(standings, CONTESTANTS),
        f"Where it goes at a rate of {RATE}; what the loader does around the scoring "
        "pass, such as capturing the last layer, counts as selecting:",
        "![Time by phase](results/phases.svg)",
    ]
    if any(standings.rates(task, "time") for task in epochs):
        parts += [
            "### At full training's time",
            "Over epochs, every contestant makes as many updates as take the time of full "
            "training, by what an update took it in its run at equal updates; differences are to "
            "uniform sampling in the same time.",
            sections.time_table(standings, epochs),
        ]
    else:
        parts += ["### At full training's time", "Not run."]
    if epochs:
        names = [name for name in ("full", "uniform", *STREAMERS) if name in standings.contestants]
        parts += [
            "### Time to full training's quality",
            f"How many seeds get, at a rate of {RATE}, to within one standard error of "
            "what full training ends with, and the median share of its time that this takes: never "
            "where fewer than half of them do.",
            sections.reached_table(standings, epochs, names),
        ]
    return parts


def _streams(standings: Standings) -> list[str]:
    streams = _of_kind(standings, "stream")
    names = [name for name in STREAMERS if name in standings.contestants]
    if not streams or not names:
        return []
    parts = [
        "## Streams",
        "A stream is read once. Who has time left can only train on more of it, so each contestant "
        "is compared with uniform sampling at the higher rate that takes as long (read off between "
        "the rates that were run, full training being the rate 1): the difference in standard "
        "errors, and the time as a share of full training's.",
        sections.streams_in_time(standings, streams, names),
    ]
    for task in streams:
        parts += [
            f"`{task}`: the gap between uniform and full training that is closed, where there is "
            "one" + (", and what is predicted over what there is:" if _calibrated(task) else ":"),
            sections.stream_table(standings, task, ["uniform", *names]),
        ]
    return parts


def _task(standings: Standings, task: str) -> list[str]:
    one = TASKS[task]
    whole = standings.seconds(task, "full", 1.0)
    better = f"{one.better} is better"
    return [
        f"### {task}",
        f"{one.measure.capitalize()}, {better}; {_described(task)}. Full training takes "
        f"{whole:.1f} s.",
        f"![{task}](results/{file_of(task)})" if _plotted(standings, task) else "",
        sections.task_table(standings, task),
    ]


def _plotted(standings: Standings, task: str) -> bool:
    """A line needs two points."""
    return len(standings.rates(task)) > 1


def _described(task: str) -> str:
    one = TASKS[task]
    how = "a stream" if one.kind == "stream" else f"{one.updates} updates of full training"
    return f"{how}, batches of {one.batch_size}"


def _calibrated(task: str) -> bool:
    return TASKS[task].measure == "log loss"


def _of_kind(standings: Standings, kind: str) -> list[str]:
    return [task for task in standings.tasks if TASKS[task].kind == kind]


def _singles() -> Sequence[str]:
    return [name for name, one in CONTESTANTS.items() if one.single]
