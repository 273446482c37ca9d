"""Select what a continuously trained model trains on.

>>> import torch
>>> from adasel_stream import SelectingLoader
>>> stream = [{"x": torch.arange(4.0) + i} for i in range(8)]
>>> loader = SelectingLoader(stream, score=lambda batch: batch["x"], sampling_rate=0.5)
>>> sum(len(batch["x"]) for batch in loader)
16
"""

from adasel_stream.adaselection import Policy
from adasel_stream.checkpoint import load_checkpoint, save_checkpoint
from adasel_stream.decoded import Decoding
from adasel_stream.loader import SelectingLoader
from adasel_stream.policies import paper, unbiased
from adasel_stream.record import LossRecord
from adasel_stream.types import LossBatch, Preference, Scored

__all__ = [
    "Decoding",
    "LossBatch",
    "LossRecord",
    "Policy",
    "Preference",
    "Scored",
    "SelectingLoader",
    "load_checkpoint",
    "paper",
    "save_checkpoint",
    "unbiased",
]
