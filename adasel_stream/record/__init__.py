"""What is known of each instance: a loss record of constant size."""

from adasel_stream.keys import instance_ids
from adasel_stream.record.known import Items, Known
from adasel_stream.record.loss_record import LossRecord
from adasel_stream.record.pending import PendingLabels

__all__ = ["Items", "Known", "LossRecord", "PendingLabels", "instance_ids"]
