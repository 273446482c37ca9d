"""Render what there is."""

from pathlib import Path

from benchmarks.evidence.store import Results

__all__ = ["render"]


def render(results: Results, docs: Path) -> None:
    """Write a line for each cell."""
    lines = [f"{cell}: {row['value']}" for cell, row in results.rows.items()]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "results.md").write_text("\n".join(lines))
