"""What every panel has: its text, its queries, our data source, and the style that all kinds share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_options

DATASOURCE = options.DataSourceRef(type_val="prometheus", uid="${datasource}")
TOKENS_PER_SECOND = "suffix: tok/s"
Panel = Builder[models.Panel]
Shape = Literal["range", "instant", "table", "buckets", "bars"]
Properties = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """`legend` may hold {{label}}. A legend that ends in "limit" is drawn as a limit."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """The texts of a panel. `description` is one sentence: what to conclude from the panel."""

    title: str
    description: str
    unit: str = "short"
    # Why it may be empty, shown in its place. Without it the panel is never empty in normal operation.
    empty: str | None = None


class _PanelBuilder(Protocol):
    """What the SDK's builders of all kinds of panel have in common."""

    def title(self, title: str, /) -> Self: ...
    def description(self, description: str, /) -> Self: ...
    def datasource(self, datasource: options.DataSourceRef, /) -> Self: ...
    def span(self, width: int, /) -> Self: ...
    def height(self, height: int, /) -> Self: ...
    def no_value(self, text: str, /) -> Self: ...


Kind = TypeVar("Kind", bound=_PanelBuilder)


def framed(panel: Kind, text: Text, width: int, height: int) -> Kind:
    """The panel with its text, size and data source."""
    panel = panel.title(text.title).description(text.description).datasource(DATASOURCE).span(width).height(height)
    return panel if text.empty is None else panel.no_value(text.empty)


def target(query: Query, number: int, shape: Shape = "range") -> prometheus.Dataquery:
    built = (
        prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + number)).legend_format(query.legend or "__auto")
    )
    built = built.datasource(DATASOURCE)
    match shape:
        case "range":
            return built.range()
        case "instant":
            return built.instant()
        case "table":
            return built.instant().format(prometheus_options.PromQueryFormat.TABLE)
        case "buckets":
            return built.range().format(prometheus_options.PromQueryFormat.HEATMAP)
        case "bars":
            return built.instant().format(prometheus_options.PromQueryFormat.HEATMAP)


def properties(values: Properties) -> list[models.DynamicConfigValue]:
    return [models.DynamicConfigValue(id_val=name, value=value) for name, value in values.items()]


def fixed(colour: str) -> dict[str, str]:
    return {"mode": "fixed", "fixedColor": colour}


def steps(*pairs: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colours by value, from each number upward; None: from below everything."""
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in pairs])
    )


def judged(*pairs: tuple[float | None, str]) -> Properties:
    """The same for one value among others."""
    return {"thresholds": steps(*pairs).build(), "color": {"mode": "thresholds"}}


def by_value() -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)


# Prometheus sorts, so the same names have the same colours on every panel; by name, two names may share one.
IN_ORDER = dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC)
LEGEND = (
    common.VizLegendOptions()
    .display_mode(options.LegendDisplayMode.LIST)
    .placement(options.LegendPlacement.BOTTOM)
    .show_legend(True)
)


def value_texts(texts: Sequence[tuple[float, str]]) -> models.ValueMap:
    return models.ValueMap(
        options={
            f"{value:g}": models.ValueMappingResult(text=text, index=index) for index, (value, text) in enumerate(texts)
        }
    )


def as_numbers(*labels: str | int) -> models.DataTransformerConfig:
    """Labels are text, which sorts 16 before 2."""
    return models.DataTransformerConfig(
        id_val="convertFieldType",
        options={
            "conversions": [{"targetField": label, "destinationType": "number"} for label in labels],
            "fields": {},
        },
    )
