"""Candidate methods of the paper's related work, beside its own seven in `methods`.

Some say how often to draw a row rather than which rows come first (`chances`); those are marked
`proportional`, and a draw shares in proportion to what they give. What each needs beyond losses is
listed in `methods.NEEDS`.
"""

from adasel_stream.related_methods.chances import (
    gradient_size,
    learnability,
    loss_history,
    selective_backprop,
    selective_backprop_with,
    soft_prune,
)
from adasel_stream.related_methods.matching import one_backward
from adasel_stream.related_methods.orders import alignment, reducible_loss

__all__ = [
    "alignment",
    "gradient_size",
    "learnability",
    "loss_history",
    "one_backward",
    "reducible_loss",
    "selective_backprop",
    "selective_backprop_with",
    "soft_prune",
]
