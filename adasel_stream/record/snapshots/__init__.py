"""Snapshots of a loss record: Parquet files that any tool opens, and one manifest."""

__all__: list[str] = []
