"""XY charts: throughput over latency, a point for each batch size."""

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, xychart
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import xychart as xychart_options

from grafana import colours
from grafana.style import LEGEND, Panel, Query, Text, as_numbers, fixed, framed, properties, target

# Grafana migrates an xychart without a version, or with one below 11.1, and breaks it.
PLUGIN_VERSION = "11.1.0"
LINE = "in order"


class Versioned(Builder[models.Panel]):
    """A panel with the version of its plugin, which the SDK's builders cannot set."""

    def __init__(self, panel: Panel, version: str) -> None:
        self._panel, self._version = panel, version

    def build(self) -> models.Panel:
        built = self._panel.build()
        built.plugin_version = self._version
        return built


@dataclass(frozen=True, slots=True)
class Axis:
    """`expr`: one sample for each batch size."""

    title: str
    unit: str
    expr: str


def scatter(text: Text, x: Axis, y: Axis, *, width: int = 12, height: int = 9) -> Panel:
    """A point for each batch size, named in the legend, and a line that joins them from the smallest on.

    Grafana's XY chart has no labels at its points, and a colour for each series only. So every batch size is a series
    of its own, and the line is one more, made of all of them.
    """
    points = 'label_replace({0}, "series", "batch $1", "batch_size", "(.*)")'
    line = f'label_replace({{0}}, "series", "{LINE}", "", "")'
    queries = [Query(f"{line} or {points}".format(axis.expr)) for axis in (x, y)]
    across, up, per = "Value #A", "Value #B", "series"
    panel = (
        framed(xychart.Panel(), text, width, height)
        .unit(y.unit)
        .axis_label(y.title)
        .mapping(xychart_options.SeriesMapping.AUTO)
        .show(xychart_options.XYShowMode.POINTS)
        .point_size(xychart.XychartFieldConfigPointSize().fixed(11))
        .fill_opacity(90)
        .legend(LEGEND)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.SINGLE))
        # One series for each number after the first. An empty list would say the same, but not to every viewer.
        .series([xychart.XYSeriesConfig()])
        .targets([target(query, number, "table") for number, query in enumerate(queries)])
        .transformations(
            [
                models.DataTransformerConfig(id_val="merge", options={}),
                as_numbers("batch_size"),
                models.DataTransformerConfig(id_val="sortBy", options={"sort": [{"field": "batch_size"}]}),
                models.DataTransformerConfig(
                    id_val="groupingToMatrix",
                    options={"columnField": per, "rowField": across, "valueField": up, "emptyValue": "null"},
                ),
                models.DataTransformerConfig(
                    id_val="organize", options={"renameByName": {f"{across}\\{per}": x.title}}
                ),
            ]
        )
        .override_by_regexp(f"/^(?!{x.title}$)/", properties({"displayName": "${__field.name}"}))
        .override_by_name(x.title, properties({"unit": x.unit, "custom.axisLabel": x.title}))
        .override_by_name(
            LINE, properties({"custom.show": "lines", "custom.lineWidth": 1, "color": fixed(colours.GREY)})
        )
    )
    for size, shade in colours.BATCH_SIZES.items():
        panel = panel.override_by_name(f"batch {size}", properties({"color": fixed(shade)}))
    return Versioned(panel, PLUGIN_VERSION)
