"""Names that become labels, checked once at the start."""

from collections.abc import Sequence

__all__ = ["checked_methods", "checked_name", "checked_slices"]

_MAX_METHODS = 12
_MAX_SLICES = 16


def checked_name(what: str, name: str) -> str:
    """Return `name` if it can be a label's value.

    Raises:
        ValueError: unless it is 1 to 64 printable characters.

    >>> checked_name("run", "clicks-eu")
    'clicks-eu'
    """
    if not (1 <= len(name) <= 64 and name.isprintable()):
        raise ValueError(f"{what} must be 1 to 64 printable characters, got {name!r}")
    return name


def checked_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the methods if each of them can have series of its own.

    Raises:
        ValueError: unless they are 1 to 12 different names.

    >>> checked_methods(["big_loss", "uniform"])
    ('big_loss', 'uniform')
    """
    names = tuple(checked_name("a method's name", name) for name in methods)
    if not 1 <= len(names) <= _MAX_METHODS or len(set(names)) < len(names):
        raise ValueError(f"methods must be 1 to {_MAX_METHODS} different names, got {names}")
    return names


def checked_slices(slices: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the slices if each of them can have series of its own.

    Raises:
        ValueError: unless they are at most 16 different names.

    >>> checked_slices(["new_users"])
    ('new_users',)
    """
    names = tuple(checked_name("a slice's name", name) for name in slices)
    if len(names) > _MAX_SLICES or len(set(names)) < len(names):
        raise ValueError(f"slices must be at most {_MAX_SLICES} different names, got {names}")
    return names
