"""Histograms over time, as heatmaps."""

from grafana_foundation_sdk.builders import heatmap
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import heatmap as heatmap_options

from grafana import colours
from grafana.style import Panel, Query, Text, framed, target


def buckets(text: Text, expr: str, *, width: int = 12, height: int = 9) -> Panel:
    """A heatmap: the darker, the more requests."""
    return (
        framed(heatmap.Panel(), text, width, height)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_options.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heatmap_options.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(32)
        )
        .exemplars_color(colours.PURPLE)
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(text.unit).axis_placement(options.AxisPlacement.LEFT))
        .show_legend()
        .tooltip(heatmap.HeatmapTooltip().mode(options.TooltipDisplayMode.SINGLE).y_histogram(True))
        .targets([target(Query(expr, "{{le}}"), 0, "buckets")])
    )
