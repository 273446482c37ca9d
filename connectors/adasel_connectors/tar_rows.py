"""Read single parts of a tar shard, where references say that they lie."""

from collections.abc import Mapping
from typing import Any

from adasel_connectors.damage import DamageError
from adasel_connectors.references import PLACE
from adasel_connectors.shards import ShardFile
from adasel_connectors.tar_columns import Column, decode_part
from adasel_connectors.tar_walk import begins_file

__all__ = ["TarRows"]

_HEADER_BYTES = 512


class TarRows:
    """The deferred parts of one open tar shard; what `adasel_connectors.open_shards` asks for."""

    def __init__(
        self, file: ShardFile, digest: int, columns: Mapping[str, Column], member_bytes: int
    ) -> None:
        """Read parts of up to `member_bytes`; `columns` has the deferred extensions."""
        self.file, self.digest = file, digest
        self._columns = columns
        self._member_bytes = member_bytes

    def values(self, name: str, references: list[list[int]]) -> tuple[list[Any], int]:
        """Read and decode parts; a `DamageError` stands for one that cannot be had."""
        values: list[Any] = []
        read = 0
        for reference in references:
            start, size = reference[PLACE:]
            try:
                part = self._part(start, size)
                read += size
                values.append(decode_part(name, self._columns[name].value, part))
            except DamageError as damage:
                values.append(damage)
        return values, read

    def forget(self) -> None:
        """Do nothing: nothing is cached."""

    def _part(self, start: int, size: int) -> bytes:
        if size > self._member_bytes:
            raise DamageError("too_large", f"it has {size} bytes, more than max_member_bytes")
        # The header comes along to be checked: a reference may come from a damaged snapshot.
        first = start - _HEADER_BYTES
        if first >= 0 and 0 <= size <= len(self.file.view) - start:
            content = self.file.read(first, _HEADER_BYTES + size)
            if len(content) == _HEADER_BYTES + size and begins_file(content[:_HEADER_BYTES]):
                return content[_HEADER_BYTES:]
        raise DamageError("changed", "no file begins where its reference points to")
