"""Walk the headers of a tar archive, trusting none of them.

Reads what tar writers of today produce for regular files: POSIX ustar with pax headers, and
GNU tar with long names and base-256 sizes. Everything else is named and refused. Two rules
make damage visible that other readers take for the end of the archive: the end must be marked
by two zero blocks, and nothing but zeros may follow them.

Source: POSIX.1-2017, pax interchange format and ustar interchange format; the GNU tar manual,
"Basic Tar Format".
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from mmap import mmap
from typing import NamedTuple, TypeAlias
from zlib import adler32

from adasel_connectors.damage import DamageError, shown

__all__ = ["END", "LINK", "REGULAR", "SPARSE", "Member", "begins_file", "walk"]

REGULAR, LINK, SPARSE, END = "regular", "link or device", "sparse", "end"
_FOLDER = "folder"

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_FIELDS = struct.Struct("100s24x12s12x8sc100x8s")  # name, size, checksum, type, magic
_POSIX_MAGIC = b"ustar\x0000"
_MAGICS = frozenset({_POSIX_MAGIC, b"ustar  \0", bytes(8)})  # POSIX, GNU, version 7
_EXTENSIONS = frozenset({b"x", b"g", b"L", b"K"})  # pax, global pax, GNU long name and link
_LINKS = b"12346"  # hard link, symbolic link, character and block device, FIFO
_LARGEST_EXTENSION_BYTES = 1 << 20
_LONGEST_SIZE = 19  # digits
_LARGEST_PADDING_BYTES = 1 << 24
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"(\xb5/\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


class _Extension(NamedTuple):
    """What pax and GNU extension headers say about the member that follows them."""

    name: bytes = b""
    size: int = -1
    sparse: bool = False


_NONE, _SILENT = _Extension(), _Extension()


Member: TypeAlias = tuple[bytes, str, int, int, int]
"""Name as stored, kind, where its content begins, the content's size, and where its first header
begins, all in bytes; a walk can start again at the latter. A plain tuple: one is made for each
file, and a named one costs as much as half of the checks."""


def walk(view: mmap, offset: int = 0, *, end_required: bool = True) -> Iterator[Member]:
    """Yield the members from `offset` on, then one of kind END.

    Directories and global comments are passed over.

    Args:
        view: the archive.
        offset: 0, or the offset of a member that an earlier walk gave.
        end_required: refuse an archive that stops without the end marker. Leave it out only
            where a manifest vouches for the file.

    Raises:
        DamageError: at the first header that cannot be trusted.

    >>> import io, mmap, tarfile
    >>> content = io.BytesIO()
    >>> with tarfile.open(fileobj=content, mode="w") as archive:
    ...     archive.addfile(tarfile.TarInfo("0.txt"))
    >>> view = mmap.mmap(-1, len(content.getvalue()))
    >>> view[:] = content.getvalue()
    >>> list(walk(view))
    [(b'0.txt', 'regular', 512, 0, 0), (b'', 'end', 512, 0, 512)]
    """
    if offset == 0:
        _refuse_compression(view)
    at = offset
    extension = _NONE
    while True:
        head = view[offset : offset + _BLOCK]
        if len(head) < _BLOCK:
            _check_end(view, offset, extension is _NONE, end_required)
            break
        raw_name, raw_size, checksum, typeflag, magic = _FIELDS.unpack_from(head)
        if _total(head) != _expected_total(checksum) or magic not in _MAGICS:
            _check_end(view, offset, extension is _NONE, end_required)
            break
        size = extension.size if extension.size >= 0 else _number(raw_size)
        if size < 0:
            raise DamageError("bad_header", f"the header at byte {offset} has an invalid size")
        start = offset + _BLOCK
        offset = start + (size + 511 & -512)
        if offset > len(view):
            raise DamageError("cut", f"byte {at} begins a member that reaches past the file's end")
        if typeflag in _EXTENSIONS:
            if size > _LARGEST_EXTENSION_BYTES:
                raise DamageError("bad_header", f"byte {at} begins an extension header too large")
            extension = _extend(extension, typeflag, view[start : start + size], at)
            if typeflag == b"g":
                at = offset
            continue
        name = extension.name or _ustar_name(raw_name, head, magic)
        kind = REGULAR if typeflag == b"0" else _kind(typeflag, head, name, size)
        if kind is not _FOLDER:
            yield name, SPARSE if extension.sparse else kind, start, size, at
        at, extension = offset, _NONE
    yield b"", END, offset, 0, offset


def begins_file(head: bytes) -> bool:
    """Tell whether 512 bytes are a sound header of a regular file, as before its content.

    >>> begins_file(bytes(512))
    False
    """
    *_, checksum, typeflag, magic = _FIELDS.unpack_from(head)
    sound = _total(head) == _expected_total(checksum) and magic in _MAGICS
    return sound and typeflag in (b"0", b"\0")


def _total(head: bytes) -> int:
    # the low half of Adler-32 is 1 + the sum of the bytes modulo 65,521: exact for ASCII
    return adler32(head) & 0xFFFF if head.isascii() else sum(head) + 1


def _extend(before: _Extension, typeflag: bytes, text: bytes, at: int) -> _Extension:
    if (
        typeflag == b"x"
        and before is _NONE
        and text[2:9] == b" mtime="
        and text.find(b"\n") == len(text) - 1
    ):
        return _SILENT  # what most writers of training shards put before each member
    if typeflag == b"K":  # a long link target; links are not read
        return _SILENT if before is _NONE else before
    if before is not _NONE and (before is not _SILENT or typeflag != b"L"):
        # Readers differ in which of two extension headers wins, so a file could show each of
        # them other samples.
        raise DamageError("bad_header", f"byte {at} begins contradicting extension headers")
    if typeflag == b"L":
        return _Extension(name=text.partition(b"\0")[0])
    records = _pax_records(text, at)
    size = records.get(b"size", b"")
    if size and (not size.isdigit() or len(size) > _LONGEST_SIZE):
        raise DamageError("bad_header", f"the pax header at byte {at} has an invalid size")
    sparse = any(key.startswith(b"GNU.sparse.") for key in records)
    name = records.get(b"GNU.sparse.name") or records.get(b"path", b"")
    if typeflag == b"x":
        silent = not (name or size or sparse)
        return _SILENT if silent else _Extension(name.rstrip(b"/"), int(size or -1), sparse)
    if size or name or sparse:
        raise DamageError(
            "bad_header", f"the global header at byte {at} renames or resizes members"
        )
    return _NONE


def _pax_records(text: bytes, at: int) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(text):
        length, space, _ = text[start : start + 12].partition(b" ")
        stop = start + int(length) if space and length.isdigit() else start
        key, equals, value = text[start + len(length) + 1 : stop].partition(b"=")
        if not equals or stop > len(text) or value[-1:] != b"\n":
            raise DamageError("bad_header", f"the pax header at byte {at} is damaged")
        records[key] = value[:-1]
        start = stop
    return records


def _kind(typeflag: bytes, head: bytes, name: bytes, size: int) -> str:
    if typeflag == b"\0" and name[-1:] != b"/":  # version 7; the slash marks a folder there
        return REGULAR
    if typeflag in _LINKS or typeflag in b"5\0":
        if size:
            raise DamageError("bad_header", f"link or folder {shown(name)} claims {size} bytes")
        return LINK if typeflag in _LINKS else _FOLDER
    if typeflag != b"S" or head[482]:  # more sparse map follows, in blocks without checksum
        what = "a sparse file" if typeflag == b"S" else f"of type {shown(typeflag)}"
        raise DamageError("unsupported_type", f"member {shown(name)} is {what}, which is not read")
    return SPARSE


def _ustar_name(raw_name: bytes, head: bytes, magic: bytes) -> bytes:
    name = raw_name.partition(b"\0")[0]
    if head[345] and magic == _POSIX_MAGIC:
        return head[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _check_end(view: mmap, offset: int, between_members: bool, end_required: bool) -> None:
    """Return if the archive may end at `offset`, where no header is."""
    rest = len(view) - offset
    if rest < _BLOCK and (rest or end_required or not between_members):
        raise DamageError("cut", f"the archive ends at byte {len(view)} without an end marker")
    if rest >= _BLOCK and (view[offset : offset + _BLOCK] != _ZEROS or not between_members):
        raise DamageError("bad_header", f"the header at byte {offset} is damaged")
    if rest > _LARGEST_PADDING_BYTES or not bytes(rest).startswith(view[offset:]):
        raise DamageError("data_after_end", f"data follows the zero block at byte {offset}")
    if rest < 2 * _BLOCK and end_required:
        raise DamageError("cut", f"the archive ends at byte {len(view)} in its end marker")


def _refuse_compression(view: mmap) -> None:
    head = view[:8]
    for start, name in _COMPRESSIONS.items():
        if head.startswith(start):
            raise DamageError(
                "compressed", f"it is compressed with {name}; expected plain tar, decompress it"
            )


@lru_cache(maxsize=1 << 16)
def _number(field: bytes) -> int:
    """Read an octal or base-256 number, 0 or more; -1 where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    try:
        return int(digits, 8) if digits.isdigit() else -bool(digits)
    except ValueError:  # 8 or 9
        return -1


@lru_cache(maxsize=1 << 16)
def _expected_total(checksum: bytes) -> int:
    """1 + the sum of a header's bytes, when its checksum field, summed as blanks, is right."""
    return _number(checksum) - 8 * 0x20 + sum(checksum) + 1
