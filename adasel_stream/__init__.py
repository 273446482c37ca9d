"""Select what a continuously trained model trains on.

>>> import torch
>>> from adasel_stream import SelectingLoader
>>> stream = [{"x": torch.arange(4.0) + i} for i in range(8)]
>>> loader = SelectingLoader(stream, score=lambda batch: batch["x"], sampling_rate=0.5)
>>> sum(len(batch["x"]) for batch in loader)
16
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adasel_stream.adaselection import Policy
    from adasel_stream.checkpoint import load_checkpoint, save_checkpoint
    from adasel_stream.decoding import Decoding
    from adasel_stream.guarding import Guards
    from adasel_stream.loader import SelectingLoader
    from adasel_stream.loss_batch import LossBatch, Preference
    from adasel_stream.policies import aligned, auto, paper, unbiased
    from adasel_stream.proxy import Proxy
    from adasel_stream.record import LossRecord, PendingLabels
    from adasel_stream.serving import LossFeed, LossWriter
    from adasel_stream.stopping import StopIndicator
    from adasel_stream.types import Scored

__all__ = [
    "Decoding",
    "Guards",
    "LossBatch",
    "LossFeed",
    "LossRecord",
    "LossWriter",
    "PendingLabels",
    "Policy",
    "Preference",
    "Proxy",
    "Scored",
    "SelectingLoader",
    "StopIndicator",
    "aligned",
    "auto",
    "load_checkpoint",
    "paper",
    "save_checkpoint",
    "unbiased",
]

_HOMES = {
    "adaselection": ("Policy",),
    "checkpoint": ("load_checkpoint", "save_checkpoint"),
    "decoding": ("Decoding",),
    "guarding": ("Guards",),
    "loader": ("SelectingLoader",),
    "loss_batch": ("LossBatch", "Preference"),
    "policies": ("aligned", "auto", "paper", "unbiased"),
    "proxy": ("Proxy",),
    "record": ("LossRecord", "PendingLabels"),
    "serving": ("LossFeed", "LossWriter"),
    "stopping": ("StopIndicator",),
    "types": ("Scored",),
}


def __getattr__(name: str) -> Any:
    # only what is asked for is imported: a serving process that writes losses needs no torch
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
