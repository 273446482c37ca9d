"""Streams of candidate batches from shards.

- `adasel_connectors.parquet.ParquetSource` reads columns of Parquet shards.
- `adasel_connectors.tar.TarSource` reads samples of tar shards in the webdataset layout.
- `adasel_connectors.manifest` describes shards, so that no damage to them stays unseen.
- `adasel_connectors.chunks` slices the large batches of DataLoader workers into small ones.

All of them check what they read, count what they leave out, and can be resumed at each batch.
With shards in a folder, a loop that trains on what is selected from them is short:

    >>> import tempfile, torch, pyarrow, pyarrow.parquet
    >>> folder = tempfile.TemporaryDirectory()
    >>> columns = pyarrow.table({"x": [i / 64 for i in range(64)], "y": [0, 1] * 32})
    >>> pyarrow.parquet.write_table(columns, f"{folder.name}/a.parquet")
    >>> weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    >>> from adasel_connectors import ParquetSource
    >>> from adasel_stream import LossRecord, SelectingLoader
    >>> def losses_of(batch):
    ...     return (batch["y"] - weight * batch["x"]) ** 2
    >>> source = ParquetSource(folder.name, batch_size=16)
    >>> record = LossRecord(capacity=1024)
    >>> loader = SelectingLoader(
    ...     source, score=losses_of, sampling_rate=0.5, record=record, ids="id"
    ... )
    >>> for batch in loader:
    ...     loader.mean(losses_of(batch)).backward()
    >>> source.counts["samples"], len(record) > 0
    (64, True)
    >>> folder.cleanup()
"""

from adasel_connectors.chunks import rebatch
from adasel_connectors.manifest import write_manifest
from adasel_connectors.parquet import ParquetSource
from adasel_connectors.tar import TarSource

__all__ = ["ParquetSource", "TarSource", "rebatch", "write_manifest"]
