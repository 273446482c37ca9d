"""Numbers as people read them at night: ages in words, three digits, bars of text."""

from collections.abc import Sequence
from typing import Final

__all__ = ["age_words", "aligned", "bar", "figure", "plain", "share_words", "shown", "size_words"]

_UNITS: Final = ((1, "s"), (60, "min"), (3600, "h"), (86_400, "d"), (31_557_600, "y"))
_SIZES: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_FULL: Final = "█"
_INSTEAD: Final = str.maketrans(
    {**dict.fromkeys("▌▋▊▉█", "#"), **dict.fromkeys("▏▎▍", " "), "…": "~"}
)


def age_words(age_s: float) -> str:
    """Tell an age in one unit, two of it at least from minutes on.

    Args:
        age_s: seconds; less than 0, by a clock that was set back, counts as 0.

    >>> age_words(7), age_words(200), age_words(7200), age_words(5 * 86_400), age_words(1e8)
    ('7 s', '3 min', '2 h', '5 d', '3 y')
    """
    whole_s = max(0, round(age_s))
    fitting = [unit for unit in _UNITS if whole_s >= 2 * unit[0]] or [_UNITS[0]]
    unit_s, name = fitting[-1]
    return f"{whole_s / unit_s:,.0f} {name}"


def size_words(size_bytes: int) -> str:
    """Tell a size in the largest unit of which there is at least one.

    >>> size_words(512), size_words(24_000_000)
    ('512 bytes', '22.9 MiB')
    """
    power = min(max(size_bytes.bit_length() - 1, 0) // 10, len(_SIZES) - 1)
    if power == 0:
        return f"{size_bytes:,} bytes"
    return f"{size_bytes / 1024**power:,.1f} {_SIZES[power]}"


def figure(number: float) -> str:
    """Tell a number with three digits that count.

    >>> figure(0.012345), figure(1234.5), figure(-2.0), figure(1e-7)
    ('0.0123', '1,230', '-2', '1e-07')
    """
    return f"{float(f'{number:.3g}'):,.6g}"


def share_words(part: int, whole: int) -> str:
    """Tell a share in percent; a small one is not told as none, nor a large one as all.

    >>> share_words(1, 3), share_words(0, 3), share_words(1, 10**6), share_words(99_999, 10**5)
    ('33.3%', '0%', '<0.1%', '>99.9%')
    """
    if part in (0, whole):
        return "100%" if part else "0%"
    percent = 100 * part / whole
    if percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 99.95 else ">99.9%"


def shown(name: str, most: int = 40) -> str:
    r"""Put a name on one line: what would move a cursor or ring a bell becomes a question mark.

    >>> shown("server-1\x1b[2J"), shown("x" * 50, 4)
    ('server-1?[2J', 'xxx…')
    """
    safe = "".join(sign if sign.isprintable() else "?" for sign in name)
    return safe if len(safe) <= most else safe[: most - 1] + "…"


def bar(part: int, whole: int, width: int) -> str:
    """Draw a share as a bar, in eighths of a character.

    Args:
        part: in [0, whole].
        whole: what fills the whole width; 0 draws nothing.
        width: in characters.

    >>> bar(1, 2, 5), bar(0, 2, 5)
    ('██▌', '')
    """
    eighths = round(8 * width * part / whole) if whole else 0
    # whatever is there is seen
    eighths = max(eighths, 1) if part else 0
    full, rest = divmod(eighths, 8)
    return _FULL * full + _EIGHTHS[rest].strip()


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lay rows of cells out as lines, two spaces between columns.

    Args:
        rows: as many cells in each.
        left: how many columns stand on the left, as text does; numbers stand on the right.

    >>> aligned([["name", "rows"], ["a", "1,000"]])
    ['name   rows', 'a     1,000']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for cells in rows:
        placed = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(placed).rstrip())
    return lines


def plain(text: str, encoding: str) -> str:
    """Put text into characters that a terminal or a file can take.

    Args:
        text: to be shown.
        encoding: of where it goes; one without bars gets other signs.

    >>> plain("██▌ 50%", "ascii"), plain("██▌", "utf-8")
    ('### 50%', '██▌')
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_INSTEAD).encode(encoding, "replace").decode(encoding)
    return text
