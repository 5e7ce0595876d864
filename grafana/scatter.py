"""XY charts: one value over another."""

from collections.abc import Mapping
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, xychart
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import xychart as xychart_options

from grafana.style import IN_ORDER, LEGEND, Panel, Query, Text, as_numbers, fixed, framed, properties, target

# Grafana migrates an xychart without a version, or with one below 11.1, and breaks it.
PLUGIN_VERSION = "11.1.0"


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
    title: str
    unit: str
    expr: str = ""


def scatter(
    text: Text,
    x: Axis,
    y: Axis,
    *,
    per: str,
    legend: str = "${__field.name}",
    width: int = 12,
    height: int = 9,
    colour: Mapping[str, str] | None = None,
) -> Panel:
    """One point for each set of labels that both expressions have; those with the same label `per` are one series.

    An x axis without an expression is the batch size, and lines join the points. `legend` is the name of a series.
    """
    queries = [Query(axis.expr) for axis in (x, y) if axis.expr]
    across, up = ("Value #A", "Value #B") if x.expr else ("batch_size", "Value")
    panel = (
        framed(xychart.Panel(), text, width, height)
        .unit(y.unit)
        .axis_label(y.title)
        .mapping(xychart_options.SeriesMapping.AUTO)
        .show(xychart_options.XYShowMode.POINTS if x.expr else xychart_options.XYShowMode.POINTS_AND_LINES)
        .point_size(xychart.XychartFieldConfigPointSize().fixed(9))
        .fill_opacity(80)
        .legend(LEGEND)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.SINGLE))
        .color_scheme(IN_ORDER)
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
        .override_by_regexp(f"/^(?!{x.title}$)/", properties({"displayName": legend}))
        .override_by_name(x.title, properties({"unit": x.unit, "custom.axisLabel": x.title}))
    )
    for name, shade in (colour or {}).items():
        panel = panel.override_by_name(name, properties({"color": fixed(shade)}))
    return Versioned(panel, PLUGIN_VERSION)
