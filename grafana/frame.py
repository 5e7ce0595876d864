"""What all dashboards have in common: variables, links, annotations, the time range."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from grafana import colours
from grafana.style import DATASOURCE, Panel

TAG = "tgi-probe"
ALL = models.VariableOption(text=["All"], value=["$__all"], selected=True)


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable whose values are those of a label. `all_value` None: All is the list of all values.

    `single`: one value at a time, at first the first one, where a mixture would mislead.
    """

    name: str
    label: str
    metric: str
    what: str
    numeric: bool = False
    all_value: str | None = ".*"
    single: bool = False

    def build(self) -> dashboard.QueryVariable:
        query = f"label_values({self.metric}, {self.name})"
        variable = (
            dashboard.QueryVariable(self.name)
            .label(self.label)
            .description(self.what)
            .query(query)
            .definition(query)
            .datasource(DATASOURCE)
            .multi(not self.single)
            .include_all(not self.single)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.NUMERICAL_ASC if self.numeric else models.VariableSort.ALPHABETICAL_ASC)
        )
        if self.single:
            return variable
        variable = variable.current(ALL)
        return variable if self.all_value is None else variable.all_value(self.all_value)


TARGET = Choice("target", "Target", "tgi_probe_success", "Servers that are probed")
WORKLOAD = Choice("workload", "Workload", 'tgi_probe_success{target=~"$target"}', "What is sent to them")
BATCH_SIZE = Choice(
    "batch_size",
    "Batch size",
    'tgi_probe_success{target=~"$target", workload=~"$workload"}',
    "Requests at once",
    numeric=True,
)
ONE_TARGET, ONE_WORKLOAD, ONE_BATCH_SIZE = (replace(choice, single=True) for choice in (TARGET, WORKLOAD, BATCH_SIZE))
SLO = Choice("slo", "SLO", "tgi_probe_slo_objective_ratio", "Service level objectives")
# All of process_… would be every process that Prometheus knows, so All is the list of our own instances.
INSTANCE = Choice("instance", "Exporter", "tgi_probe_build_info", "The tgi-probe daemons", all_value=None)


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]
    # Folded rows run no query until they are opened.
    folded: bool = False


def build(
    uid: str,
    title: str,
    question: str,
    choices: Iterable[Choice],
    rows: Iterable[Row],
    *,
    since: str = "now-1h",
    more: Iterable[dashboard.CustomVariable] = (),
) -> models.Dashboard:
    """The finished dashboard. The `question` is what it answers."""
    built = (
        dashboard.Dashboard(f"tgi-probe / {title}")
        .uid(uid)
        .description(question)
        .tags([TAG])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time(since, "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(
            dashboard.DashboardLink("tgi-probe")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
            .as_dropdown(False)
        )
    )
    for choice in choices:
        built = built.with_variable(choice.build())
    for variable in more:
        built = built.with_variable(variable)
    for annotation in annotations():
        built = built.annotation(annotation)
    for row in rows:
        header = dashboard.Row(row.title)
        if row.folded:
            for panel in row.panels:
                header = header.with_panel(panel)
        built = built.with_row(header)
        if not row.folded:
            for panel in row.panels:
                built = built.with_panel(panel)
    finished = built.build()
    number(finished)
    return finished


def number(built: models.Dashboard) -> None:
    """Panel ids in order, so that links to a panel stay; and places for the panels of folded rows, which have none."""
    count = 0
    for panel in built.panels or []:
        count += 1
        panel.id_val = count
        if isinstance(panel, models.RowPanel):
            x = 0
            assert panel.grid_pos is not None
            for inner in panel.panels:
                count += 1
                inner.id_val = count
                assert inner.grid_pos is not None
                inner.grid_pos.x, inner.grid_pos.y = x, panel.grid_pos.y + 1
                x = (x + inner.grid_pos.w) % 24


def annotations() -> list[dashboard.AnnotationQuery]:
    def annotation(name: str, colour: str, expr: str, text: str) -> dashboard.AnnotationQuery:
        return (
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(DATASOURCE)
            .enable(True)
            .icon_color(colour)
            .expr(expr)
            .step("15s")
            .title_format(name)
            .text_format(text)
        )

    return [
        annotation(
            "Configuration reloaded",
            colours.SKY,
            # One event at the time that the value tells, however often it was scraped.
            "tgi_probe_config_last_reload_success_timestamp_seconds * 1000",
            "tgi-probe {{instance}} took a new configuration, or started",
        ).use_value_for_time(True),
        annotation(
            "Reload refused",
            colours.BAD,
            "tgi_probe_config_last_reload_successful == 0",
            "{{instance}} keeps its old configuration",
        ),
        annotation(
            "Target down",
            colours.BAD,
            'tgi_probe_target_up{target=~"$target"} == 0',
            "{{target}} did not answer; the end of the mark is its return",
        ),
    ]
