"""What is known of each instance: a loss record of constant size."""

from adasel_stream.keys import instance_ids
from adasel_stream.record.known import Items, Known
from adasel_stream.record.loss_record import LossRecord

__all__ = ["Items", "Known", "LossRecord", "instance_ids"]
