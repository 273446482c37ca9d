"""A run's report as one HTML file, and its sections from the run log."""

from adasel_stream.report.page import Section, Tile, render_report, report_html, table
from adasel_stream.report.runs import run_sections

__all__ = ["Section", "Tile", "render_report", "report_html", "run_sections", "table"]
