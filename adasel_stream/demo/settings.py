"""What the user of the demo can choose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["Format", "Losses", "Settings"]

Format: TypeAlias = Literal["parquet", "tar"]
"""Kind of shard that a run reads."""

Losses: TypeAlias = Literal["scoring", "serving"]
"""Where AdaSelection's losses come from; with "serving", scoring is shown beside it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices of a run.

    Attributes:
        out: folder for everything that the run writes.
        data: folder for the prepared shards, or None for one in `out`.
        rows: how many flights, the first of the year; None for all.
        sampling_rate: share that AdaSelection and uniform train on, in (0, 1].
        losses: where AdaSelection's losses come from.
        seed: of first weights and selection, at least 0.
        format: kind of shard to read.
        port: of the live metrics; 0 for a free one.
        save_every_s: seconds between two snapshots, at least 0.
        fresh: whether to start over although a snapshot is there.

    Raises:
        ValueError: a number out of its range.
    """

    out: Path = Path("demo-run")
    data: Path | None = None
    rows: int | None = None
    sampling_rate: float = 0.2
    losses: Losses = "scoring"
    seed: int = 0
    format: Format = "parquet"
    port: int = 9400
    save_every_s: float = 15.0
    fresh: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {self.sampling_rate}")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be in 0..65535, got {self.port}")
        if not self.save_every_s >= 0:
            raise ValueError(f"save-every must be at least 0 seconds, got {self.save_every_s}")
