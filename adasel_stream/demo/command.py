"""The demo at the command line: run it, then print what came out."""

from pathlib import Path

from adasel_stream.demo.job import run
from adasel_stream.demo.screen import open_screen
from adasel_stream.demo.settings import Settings
from adasel_stream.demo.summary import HEADERS, LEGEND, Summary, row

__all__ = ["run_demo"]


def run_demo(settings: Settings) -> int:
    """Run the demo, print its result, and return the command's exit code; raises as `job.run`."""
    screen = open_screen()
    try:
        outcome = run(settings, screen)
    finally:
        screen.close()
    if outcome.summary is not None:
        _print_result(outcome.summary, settings.out)
    return outcome.exit_code


def _print_result(summary: Summary, out: Path) -> None:
    rows = [HEADERS, *(row(summary, name) for name in summary.figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        print("  ".join([cells[0].ljust(widths[0]), *numbers]))
    logs = ", ".join(f"{name}.jsonl" for name in summary.figures)
    print(f"\n{LEGEND}\n\n{summary.verdict}\n{summary.cost}\n\nreport:   {out / 'report.html'}")
    print(f"numbers:  {out / 'summary.json'}\nrun logs: {logs}, all in {out}")
