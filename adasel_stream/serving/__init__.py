"""Losses from serving processes: a writer for them, and the trainer's feed."""

from adasel_stream.serving.feed import LossFeed
from adasel_stream.serving.served import ServedRecord
from adasel_stream.serving.writer import LossWriter

__all__ = ["LossFeed", "LossWriter", "ServedRecord"]
