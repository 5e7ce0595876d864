"""Panels of single values: over time, and now."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import common, dashboard, stat, timeseries
from grafana_foundation_sdk.models import common as options

from grafana import colours
from grafana.style import (
    IN_ORDER,
    LEGEND,
    Panel,
    Properties,
    Query,
    Text,
    by_value,
    fixed,
    framed,
    properties,
    steps,
    target,
    value_texts,
)

# Sparse probes leave gaps in rates. A line bridges gaps up to this length.
BRIDGED_GAP_MILLISECONDS = 5 * 60 * 1000
LIMIT: Properties = {
    "color": fixed(colours.BAD),
    "custom.lineStyle": {"fill": "dash", "dash": [8, 8]},
    "custom.lineWidth": 1,
    "custom.fillOpacity": 0,
    "custom.stacking": {"mode": "none", "group": "limit"},
}


def lines(
    text: Text,
    queries: Sequence[Query],
    *,
    width: int = 12,
    height: int = 8,
    colour: Mapping[str, str] | None = None,
    by_batch_size: bool = False,
    stacked: bool = False,
    stepped: bool = False,
    from_zero: bool = True,
    most: float | None = None,
    limits: Sequence[float] = (),
) -> Panel:
    """Values over time. `limits` are dashed lines, `most` is the top of the axis when all values are below it.

    `by_batch_size`: legends end in "batch 8" or another size, and have the colour of that size.
    """
    panel = (
        framed(timeseries.Panel(), text, width, height)
        .unit(text.unit)
        .line_width(2 if not stacked else 1)
        .fill_opacity(35 if stacked else 0)
        .show_points(options.VisibilityMode.NEVER)
        .span_nulls(BRIDGED_GAP_MILLISECONDS)
        .color_scheme(IN_ORDER)
        .legend(LEGEND)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
        .targets([target(query, number) for number, query in enumerate(queries)])
    )
    if from_zero:
        panel = panel.min(0)
    if most is not None:
        panel = panel.axis_soft_max(most)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if stepped:
        panel = panel.line_interpolation(options.LineInterpolation.STEP_AFTER)
    if limits:
        panel = panel.thresholds(steps((None, "transparent"), *((limit, colours.BAD) for limit in limits)))
        panel = panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        )
    for name, shade in (colour or {}).items():
        panel = panel.override_by_name(name, properties({"color": fixed(shade)}))
    for size, shade in (colours.BATCH_SIZES if by_batch_size else {}).items():
        panel = panel.override_by_regexp(f"/batch {size}$/", properties({"color": fixed(shade)}))
    if any(query.legend.endswith("limit") for query in queries):
        panel = panel.override_by_regexp("/limit$/", properties(LIMIT))
    return panel


def numbers(
    text: Text,
    queries: Sequence[Query],
    *,
    width: int = 6,
    height: int = 4,
    by: dashboard.ThresholdsConfig | None = None,
    texts: Sequence[tuple[float, str]] = (),
    decimals: int | None = None,
    names: bool = False,
    words_only: bool = False,
    own: Mapping[str, Properties] | None = None,
) -> Panel:
    """The newest values, large. `by` colours them, `texts` shows words instead of numbers.

    `names` puts the legends beside the values, `words_only` in their place. `own`: what differs, by legend.
    """
    shown = options.BigValueTextMode.VALUE_AND_NAME if names else options.BigValueTextMode.VALUE
    panel = (
        framed(stat.Panel(), text, width, height)
        .unit(text.unit)
        .graph_mode(options.BigValueGraphMode.NONE)
        .color_mode(options.BigValueColorMode.VALUE)
        .text_mode(options.BigValueTextMode.NAME if words_only else shown)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .color_scheme(by_value())
        .thresholds(by or steps((None, colours.NEUTRAL)))
        .targets([target(query, number, "instant") for number, query in enumerate(queries)])
    )
    if texts:
        panel = panel.mappings([value_texts(texts)])
    if decimals is not None:
        panel = panel.decimals(decimals)
    for name, differs in (own or {}).items():
        panel = panel.override_by_name(name, properties(differs))
    return panel
