"""Every task, by its name."""

from benchmarks.evidence.problem import Task
from benchmarks.evidence.tasks.click import CLICK
from benchmarks.evidence.tasks.flights import FLIGHTS
from benchmarks.evidence.tasks.images import CIFAR10, FASHION
from benchmarks.evidence.tasks.language import WIKITEXT
from benchmarks.evidence.tasks.tables import BIKE_DAILY, BIKE_HOURLY, LINE

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (LINE, BIKE_DAILY, BIKE_HOURLY, FLIGHTS, *FASHION, CIFAR10, WIKITEXT, CLICK)
}
