"""Charts as SVG text: pure functions, no script, no link, readable in light and dark."""

from adasel_stream.charts.areas import area_chart
from adasel_stream.charts.bars import bar_chart
from adasel_stream.charts.histograms import histogram_chart
from adasel_stream.charts.lines import Series, line_chart
from adasel_stream.charts.scales import number, significant
from adasel_stream.charts.svg import color, visible

__all__ = [
    "Series",
    "area_chart",
    "bar_chart",
    "color",
    "histogram_chart",
    "line_chart",
    "number",
    "significant",
    "visible",
]
