"""Snapshots of a loss record: Parquet files that any tool opens, and one manifest."""
