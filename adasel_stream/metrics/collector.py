"""Runs as Prometheus families, built when somebody asks."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from adasel_stream.metrics.families import FAMILIES, PREFIX, Family
from adasel_stream.metrics.histogram import Histogram
from adasel_stream.metrics.reading import Run, identity, values

__all__ = ["RunCollector"]


class RunCollector(Collector):
    """Show several runs under the labels `run` and `rank`.

    A run's numbers are read here and nowhere in the training step. A family without a
    sample still shows its help, so that "nothing yet" differs from "renamed".

    Args:
        runs: what to show; more may be added later with `add`.

    Raises:
        ValueError: if two runs have the same name and rank.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        """Show `runs`."""
        self._runs: tuple[Run, ...] = ()
        for run in runs:
            self.add(run)

    def add(self, run: Run) -> None:
        """Show one more run.

        Raises:
            ValueError: if a run with this name and rank is shown already.
        """
        if any((run.run, run.rank) == (other.run, other.rank) for other in self._runs):
            raise ValueError(
                f"run {run.run!r} with rank {run.rank} is shown already: "
                f"give each run of a process its own name"
            )
        self._runs = (*self._runs, run)

    def describe(self) -> Iterator[Metric]:
        """Yield the families without samples, so that registering reads nothing."""
        return map(_empty, FAMILIES)

    def collect(self) -> Iterator[Metric]:
        """Yield every family with the samples of all runs."""
        runs = self._runs
        for run in runs:
            run.refresh()
        for family in FAMILIES:
            shown = _empty(family)
            for run in runs:
                _add(shown, run, family)
            yield shown


def _empty(family: Family) -> Metric:
    # an info is shown as a gauge of value 1, so that its name is the documented one
    kind = "gauge" if family.kind == "info" else family.kind
    return Metric(PREFIX + family.name, family.help, kind)


def _add(shown: Metric, run: Run, family: Family) -> None:
    here = {"run": run.run, "rank": str(run.rank)}
    name = PREFIX + family.shown
    if family.kind == "info":
        shown.add_sample(name, {**here, **identity(run)}, 1.0)
        return
    for label, value in values(run, family).items():
        labels = {**here, family.label: label} if family.label else here
        if isinstance(value, Histogram):
            _add_buckets(shown, name, labels, value)
        elif value is not None and value == value:  # a gauge that is not known yet has none
            shown.add_sample(name, labels, value)


def _add_buckets(shown: Metric, name: str, labels: dict[str, str], histogram: Histogram) -> None:
    counts, total = histogram.state
    upto = counts.tolist()
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, upto, strict=True):
        shown.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
    shown.add_sample(f"{name}_count", labels, upto[-1])
    shown.add_sample(f"{name}_sum", labels, total)
