"""A file to Arrow, that hands on what is written to it."""

from typing import Any

__all__ = ["Pieces"]


class Pieces:
    """A file to Arrow, whose content is taken away as it comes.

    >>> pieces = Pieces()
    >>> pieces.write(b"ab"), pieces.take(), pieces.take(), pieces.tell()
    (2, [b'ab'], [], 2)
    """

    def __init__(self) -> None:
        self.closed = False
        self._pieces: list[bytes] = []
        self._bytes = 0

    def take(self) -> list[bytes]:
        """Return what was written since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def write(self, piece: Any) -> int:
        """Take a piece; what follows is what Arrow asks of a file."""
        self._pieces.append(bytes(piece))
        self._bytes += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        """Return the bytes so far."""
        return self._bytes

    def writable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return False."""
        return False

    def seekable(self) -> bool:
        """Return False."""
        return False

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Take no more."""
        self.closed = True
