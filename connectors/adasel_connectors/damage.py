"""What can be wrong with a shard, as readers report it and as users see it counted."""

from typing import Literal, TypeAlias

__all__ = ["ON_ERROR", "DamageError", "OnError", "shown"]

OnError: TypeAlias = Literal["raise", "skip_sample", "skip_shard"]
"""What to do about damage. `raise` stops with a `ShardError`. `skip_sample` leaves out a
sample that cannot be used, and the rest of a shard whose structure cannot be trusted any more.
`skip_shard` leaves out the rest of the shard for either. All of it is counted."""

ON_ERROR: tuple[OnError, ...] = ("raise", "skip_sample", "skip_shard")

_SHOWN_CHARACTERS = 80


class DamageError(Exception):
    """A reader's finding; the source turns it into a `ShardError` or a counted skip.

    Attributes:
        kind: the counter that it belongs to, such as `cut`.
        reason: what was expected and what came, without user data.
        one_sample: only one sample is unusable, the shard's structure holds.
    """

    def __init__(self, kind: str, reason: str, *, one_sample: bool = False) -> None:
        """Keep what was found."""
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.one_sample = one_sample


def shown(name: str | bytes) -> str:
    r"""Quote a name that came from a shard: escaped, and cut to 80 characters.

    >>> shown(b"../up\n" + b"x" * 100)[:12]
    "'../up\\nxxxx"
    """
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    short = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return ascii(short)
