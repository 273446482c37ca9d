"""Where a source stands in its shards, and how that is written down and checked.

A pass over the shards is fixed when it begins: their names and sizes travel with the state.
So a resumed pass goes over the same shards in the same order, even when others have arrived
since; those take part from the next pass on. Shards that were finished may be gone.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from adasel_connectors.damage import shown
from adasel_connectors.shards import Shard, is_below_folder, number_shards
from adasel_stream.errors import ShardError, SourceError

__all__ = ["Pass", "Position", "begin_pass", "read_state", "write_state"]

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the shards, and the share of it that this process reads.

    Attributes:
        number: passes finished before it.
        names: of the data set's shards, in order; empty while the pass has not begun.
        sizes: of each shard in bytes when the pass began; -1 where it was missing.
        part: which share, in [0, parts).
        parts: workers of all ranks together, at least 1.
    """

    number: int
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    part: int = 0
    parts: int = 1

    def shards(self, path_of: Callable[[str], str]) -> list[Shard]:
        """Give the shards of this share."""
        numbered = number_shards({name: path_of(name) for name in self.names})
        return numbered[self.part :: self.parts]


@dataclass(frozen=True, slots=True)
class Position:
    """Where the next sample lies.

    Attributes:
        index: of the shard among those of this share.
        row: samples of that shard that lie before it.
        offset: byte in that shard where reading goes on; 0 where only rows count.
        fingerprint: of that shard, or "" while nothing of it has been read.
    """

    index: int = 0
    row: int = 0
    offset: int = 0
    fingerprint: str = ""


def begin_pass(number: int, paths: Mapping[str, str], part: int, parts: int) -> Pass:
    """Fix what a pass goes over."""
    sizes = tuple(_size(path) for path in paths.values())
    return Pass(number, tuple(paths), sizes, part, parts)


def write_state(
    kind: str, current: Pass, position: Position, counts: dict[str, int]
) -> dict[str, Any]:
    """Write a position down as plain data.

    >>> state = write_state("tar", Pass(2, ("a.tar",), (1024,)), Position(0, 7, 512), {})
    >>> state["pass"], state["shards"], state["row"], state["offset"]
    (2, ('a.tar',), 7, 512)
    """
    return {
        "format": _FORMAT,
        "source": kind,
        "pass": current.number,
        "part": current.part,
        "parts": current.parts,
        "shards": current.names,  # the same tuples in each state of a pass: they cost nothing
        "sizes": current.sizes,
        "index": position.index,
        "row": position.row,
        "offset": position.offset,
        "fingerprint": position.fingerprint,
        "counts": counts,
    }


def read_state(
    kind: str, state: Mapping[str, Any], path_of: Callable[[str], str]
) -> tuple[Pass, Position, dict[str, int]]:
    """Read what `write_state` wrote, and check it against the shards as they are now.

    Args:
        kind: of source that the state must come from.
        state: the state, also after a detour through JSON.
        path_of: says where a shard lies, also one that is not listed any more.

    Raises:
        SourceError: it is not a state of such a source.
        ShardError: a shard that is still to be read has changed or is gone.
    """
    if not isinstance(state, Mapping) or state.get("source") != kind:
        raise SourceError(f"expected a state of a {kind} source, got something else")
    if state.get("format") != _FORMAT:
        raise SourceError(
            f"the state has format {state.get('format')!r}, this version reads {_FORMAT}"
        )
    names: Any
    sizes: Any
    counts: Any
    numbers = [state.get(name) for name in ("pass", "part", "parts", "index", "row", "offset")]
    names, sizes, counts = (state.get(name) for name in ("shards", "sizes", "counts"))
    fingerprint = state.get("fingerprint")
    if not (
        all(type(number) is int and number >= 0 for number in numbers)
        and _is_list_of(str, names)
        and all(is_below_folder(name) for name in names)
        and _is_list_of(int, sizes)
        and len(names) == len(sizes)
        and isinstance(counts, dict)
        and _is_list_of(int, list(counts.values()))
        and isinstance(fingerprint, str)
    ):
        raise SourceError(f"the state of a {kind} source is damaged: a field is not what it was")
    number, part, parts, index, row, offset = cast("list[int]", numbers)
    known = Pass(number, tuple(names), tuple(sizes), part, max(parts, 1))
    for i in range(part + index * known.parts, len(known.names), known.parts):
        _check_unchanged(known.names[i], known.sizes[i], path_of)
    return known, Position(index, row, offset, fingerprint), cast("dict[str, int]", counts)


def _check_unchanged(name: str, size: int, path_of: Callable[[str], str]) -> None:
    now = _size(path_of(name))
    if now == size:
        return
    if now < 0:
        raise ShardError(f"shard {shown(name)} is missing, the snapshot goes on in it or after it")
    raise ShardError(
        f"shard {shown(name)} has changed since the snapshot: it has {now} bytes and had {size}"
    )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _is_list_of(kind: type, values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is kind for value in values)
