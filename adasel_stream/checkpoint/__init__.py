"""One atomic, checksummed snapshot of all state of a run, without pickle."""

from adasel_stream.checkpoint.file import (
    FORMAT_VERSION,
    MAX_HEADER_BYTES,
    load_checkpoint,
    save_checkpoint,
)

__all__ = ["FORMAT_VERSION", "MAX_HEADER_BYTES", "load_checkpoint", "save_checkpoint"]
