"""Counters, gauges and histograms of a run, and the page that shows them."""

from adasel_stream.metrics.families import FAMILIES, LOSS_BOUNDS, PHASES, Family
from adasel_stream.metrics.histogram import Histogram
from adasel_stream.metrics.phases import PhaseClock
from adasel_stream.metrics.server import Server, serve
from adasel_stream.metrics.slots import Metrics

__all__ = [
    "FAMILIES",
    "LOSS_BOUNDS",
    "PHASES",
    "Family",
    "Histogram",
    "Metrics",
    "PhaseClock",
    "Server",
    "serve",
]
