"""The report: one HTML file that needs no network, no script and no other file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from adasel_stream.charts.svg import visible

__all__ = ["Section", "Tile", "render_report", "report_html", "table"]


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline number.

    Attributes:
        label: what it is, a few words.
        value: the number with its unit, as text.
        note: what to compare it with, a few words; may be empty.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One question and its answer.

    Attributes:
        heading: plain text.
        text: plain text that says what to see; may be empty; blank lines part paragraphs.
        figures: markup from `adasel_stream.charts` or `table`, one under the other. They
            are put on the page as they are: never pass text that was not escaped.
    """

    heading: str
    text: str = ""
    figures: tuple[str, ...] = ()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as markup; the first column names the row, the others hold numbers.

    Args:
        headers: plain text, one a column.
        rows: plain text, as many cells as headers.

    Raises:
        ValueError: if a row has another number of cells than there are headers.

    >>> table(["arm", "loss"], [["uniform", "0.41"]]).count("<tr>")
    2
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"every row must have {len(headers)} cells, got {len(row)}")
    head = "".join(f'<th scope="col">{visible(name)}</th>' for name in headers)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: Sequence[str]) -> str:
    cells = [f"<td>{visible(cell)}</td>" for cell in row[1:]]
    return "".join([f'<th scope="row">{visible(row[0])}</th>', *cells] if row else cells)


def report_html(
    *,
    title: str,
    verdict: str,
    tiles: Sequence[Tile] = (),
    sections: Sequence[Section] = (),
    subtitle: str = "",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return the whole page as text; see `render_report`.

    >>> page = report_html(title="A <run>", verdict="It paid.")
    >>> "<h1>A &lt;run&gt;</h1>" in page
    True
    """
    style = files("adasel_stream.report").joinpath("report.css").read_text(encoding="utf-8")
    body = [
        "<header>",
        f"<h1>{visible(title)}</h1>",
        f'<p class="subtitle">{visible(subtitle)}</p>' if subtitle else "",
        f'<p class="verdict">{visible(verdict)}</p>',
        "</header>",
        _tiles(tiles),
        *map(_section, sections),
        f"<footer>{_facts(facts or {})}<p>Written by adasel-stream.</p></footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{visible(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def render_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    verdict: str,
    tiles: Sequence[Tile] = (),
    sections: Sequence[Section] = (),
    subtitle: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the report to `path`, replacing what is there.

    Every text is escaped, so that names from a stream may appear in it.

    Args:
        path: file to write, in a folder that exists.
        title: of the page.
        verdict: one or two sentences that answer whether selection paid.
        tiles: headline numbers, best three to five.
        sections: the rest of the page, most important first.
        subtitle: what was run, in one line.
        facts: settings and versions, shown at the end of the page.

    Raises:
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "report.html"
    >>> render_report(path, title="Flights", verdict="Selection saved 47 % of the cost.",
    ...               tiles=[Tile("cost saved", "47 %", "estimated 50 %")],
    ...               sections=[Section("Where the time went", "Mostly training.")])
    >>> "Selection saved 47 %" in path.read_text()
    True
    """
    page = report_html(
        title=title,
        verdict=verdict,
        tiles=tiles,
        sections=sections,
        subtitle=subtitle,
        facts=facts,
    )
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, target)


def _tiles(tiles: Sequence[Tile]) -> str:
    if not tiles:
        return ""
    shown = "".join(
        f"<li><span>{visible(tile.label)}</span><b>{visible(tile.value)}</b>"
        f"<span>{visible(tile.note)}</span></li>"
        for tile in tiles
    )
    return f'<ul class="tiles">{shown}</ul>'


def _section(section: Section) -> str:
    paragraphs = "".join(f"<p>{visible(part)}</p>" for part in section.text.split("\n\n") if part)
    figures = "".join(f"<figure>{figure}</figure>" for figure in section.figures)
    return f"<section><h2>{visible(section.heading)}</h2>{paragraphs}{figures}</section>"


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    shown = "".join(
        f"<dt>{visible(name)}</dt><dd>{visible(value)}</dd>" for name, value in facts.items()
    )
    return f"<dl>{shown}</dl>"
