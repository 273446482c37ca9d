"""Streams of candidate batches: Parquet shards and tar shards."""
