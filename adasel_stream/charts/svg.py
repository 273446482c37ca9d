"""SVG elements as text: escaped, short, and coloured for light and dark pages."""

import html
import re

__all__ = ["color", "element", "ink_on", "shortened", "text", "text_width", "visible", "with_halo"]

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"

# Okabe and Ito's palette, which colour-blind readers can tell apart, with grey for what is
# only compared with; five quieter colours follow for charts with many parts.
_COLORS = (
    "#0072b2",
    "#d55e00",
    "#8a94a3",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#882255",
    "#999933",
    "#44aa99",
    "#6b5b95",
    "#b5895b",
)

_DEEP = (0, 1, 3, 7, 10)  # white is readable on these; a dark page makes them lighter

# what XML and HTML do not allow in text
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def visible(raw: str) -> str:
    r"""Escape any text for an element or an attribute.

    >>> visible('<b>"a & b"</b>\x00')
    '&lt;b&gt;&quot;a &amp; b&quot;&lt;/b&gt;�'
    """
    return html.escape(_FORBIDDEN.sub("�", raw))


def shortened(raw: str, most: int = 28) -> str:
    """Cut a name that would take a chart's whole width.

    >>> shortened("uniform"), shortened("x" * 100, 5)
    ('uniform', 'xxxx…')
    """
    return raw if len(raw) <= most else raw[: most - 1] + "…"


def color(name: str | int) -> str:
    """Return a colour that the page may redefine, with a fallback for a page that does not.

    Args:
        name: ink, muted, grid or paper; or the number of a series, at least 0, of which 2
            is the grey one.

    >>> color("ink"), color(1)
    ('var(--ink,#1c2430)', 'var(--series-1,#d55e00)')
    """
    if isinstance(name, int):
        number = name % len(_COLORS)
        return f"var(--series-{number},{_COLORS[number]})"
    plain = {
        "ink": "#1c2430",
        "dark": "#12161c",
        "muted": "#5b6675",
        "grid": "#e3e8ef",
        "paper": "#ffffff",
    }
    return f"var(--{name},{plain[name]})"


def ink_on(number: int) -> str:
    """Return the name of the ink that is readable on a series' colour, in light and dark.

    >>> ink_on(0), ink_on(6)
    ('paper', 'dark')
    """
    return "paper" if number % len(_COLORS) in _DEEP else "dark"


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Return one element.

    Args:
        name: tag.
        *children: markup, already escaped.
        **attributes: `_` stands for `-`; numbers are rounded to a tenth of a pixel.

    >>> element("line", x1=0, x2=10.04, stroke_width=1)
    '<line x1="0" x2="10" stroke-width="1"/>'
    """
    parts = [name]
    for key, value in attributes.items():
        shown = visible(value) if isinstance(value, str) else f"{round(value, 1):g}"
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{shown}"')
    start = " ".join(parts)
    return f"<{start}>{''.join(children)}</{name}>" if children else f"<{start}/>"


def text(
    x: float,
    y: float,
    raw: str,
    *,
    ink: str = "ink",
    anchor: str = "start",
    size: float = 12,
    weight: int = 400,
    after: str = "",
) -> str:
    """Return escaped text whose middle line is at `y`.

    Args:
        x: pixel that `anchor` refers to.
        y: pixel of the middle line.
        raw: any text.
        ink: name of a colour of the page.
        anchor: start, middle or end.
        size: in pixels.
        weight: 400 is regular, 600 is bold.
        after: more text in the muted colour and regular weight.

    >>> text(0, 4, "a<b").startswith('<text x="0" y="8.3"')
    True
    """
    more = element("tspan", visible(after), dx=6, font_weight=400, style=f"fill:{color('muted')}")
    return element(
        "text",
        visible(raw),
        more if after else "",
        x=x,
        y=y + 0.36 * size,  # half of a capital's height; dominant-baseline differs by browser
        font_size=size,
        font_weight=weight,
        text_anchor=anchor,
        style=f"fill:{color(ink)}",
    )


def with_halo(*drawn: str) -> str:
    """Set texts off from the lines behind them.

    >>> with_halo("<text/>").startswith('<g style="stroke:var(--paper')
    True
    """
    style = f"stroke:{color('paper')};stroke-width:4;stroke-linejoin:round;paint-order:stroke"
    return element("g", *drawn, style=style)


def text_width(raw: str, size: float = 12) -> float:
    """Estimate the width of a text in pixels, a little too wide rather than too narrow.

    >>> text_width("uniform") > 30
    True
    """
    return 0.6 * size * len(raw)
