"""The rules of the house and those of Grafana's dashboard-linter, for every generated dashboard.

Not applied: template-job, template-instance, target-job and target-instance. Our series are told apart by `target`, and
several exporters on the same targets add up; the Exporter dashboard has `instance`, where it matters.
"""

import re
from typing import Any

import pytest
import yaml

from grafana import colours, generate
from tests.dashboards.asked import Json, dashboards, everything, panels

DASHBOARDS = dashboards()
EVERY = pytest.mark.parametrize("name", DASHBOARDS)
UNITS = {"locale", "s", "short", "none", "percentunit", "bytes", "dateTimeFromNow", "dateTimeAsLocal"}
OWN_UNIT = re.compile(r"suffix:.+")
CHOICES = {"target", "workload", "batch_size"}
# What would mislead if it were mixed: there the first value is chosen.
ONE_AT_A_TIME = {"batch-sizes.json": {"target", "workload"}, "latency.json": {"target", "workload", "batch_size"}}


def texts(value: Any, key: str) -> set[str]:
    """Every text under this key, anywhere."""
    if isinstance(value, dict):
        own = {value[key]} if isinstance(value.get(key), str) else set()
        return own.union(*(texts(inner, key) for inner in value.values()))
    return set().union(*(texts(inner, key) for inner in value)) if isinstance(value, list) else set()


def test_the_files_are_what_the_code_makes() -> None:
    assert {path.name: text for path, text in generate.texts().items()} == {
        path.name: path.read_text() for path in generate.FOLDER.glob("*.json")
    }


def test_a_difference_is_told_and_fails(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "slo.json").write_text("{}")
    (tmp_path / "left-over.json").write_text("{}")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("differs from what grafana/*.py make: left-over.json, slo.json;")


def test_there_is_one_dashboard_for_each_question() -> None:
    questions = {dashboard["description"] for dashboard in DASHBOARDS.values()}
    assert len(questions) == len(DASHBOARDS) == 5
    assert all(question.endswith("?") for question in questions)
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 5


@EVERY
def test_a_dashboard_has_at_most_12_panels_and_asks_nothing_twice(name: str) -> None:
    found = list(panels(DASHBOARDS[name]))
    assert len(found) <= 12
    assert len({panel["title"] for panel in found}) == len(found)


def test_no_two_panels_anywhere_ask_the_same() -> None:
    places: dict[tuple[str, ...], str] = {}
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            asked = (panel["type"], *sorted(target["expr"] for target in panel["targets"]))
            assert asked not in places, f"{name} / {panel['title']}: as {places[asked]}"
            places[asked] = f"{name} / {panel['title']}"


@EVERY
def test_the_answer_stands_first_and_large(name: str) -> None:
    [row, first, *_] = DASHBOARDS[name]["panels"]
    assert (row["title"], first["type"]) == ("The answer", "stat")


def test_no_panel_shows_a_place_within_a_bucket_as_a_measured_value() -> None:
    """Users' requests are an exception: of those there are only the server's own histograms."""
    ours = [one for one in everything() if "histogram_quantile" in one.expr and "tgi_probe_" in one.expr]
    assert not ours


@EVERY
def test_every_panel_has_a_title_and_one_sentence_that_says_what_to_conclude(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        assert panel["title"].strip()
        assert re.fullmatch(r"[A-Z0-9].{20,220}\.", panel["description"]), panel["title"]
        assert panel["description"].count(". ") == 0, panel["title"]


@EVERY
def test_every_panel_has_queries_and_takes_its_data_from_the_chosen_source(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        assert panel["targets"], panel["title"]
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


@EVERY
def test_every_number_has_a_unit(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        if panel["type"] == "heatmap":
            units = {panel["options"]["yAxis"]["unit"]}
        elif panel["type"] == "table":
            units = {
                prop["value"]
                for override in panel["fieldConfig"]["overrides"]
                for prop in override["properties"]
                if prop["id"] == "unit"
            }
        else:
            units = {panel["fieldConfig"]["defaults"].get("unit")}
        for unit in units:
            assert unit in UNITS or OWN_UNIT.fullmatch(unit), f"{panel['title']}: {unit}"


@EVERY
def test_ids_are_unique_and_no_panel_overlaps_another_or_leaves_the_grid(name: str) -> None:
    dashboard = DASHBOARDS[name]
    ids = [panel["id"] for panel in (*dashboard["panels"], *panels(dashboard))]
    assert len(set(ids)) == len({id(p) for p in (*dashboard["panels"], *panels(dashboard))})
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@EVERY
def test_variables_begin_with_the_data_source_and_the_choices_have_all(name: str) -> None:
    [source, *others] = DASHBOARDS[name]["templating"]["list"]
    assert (source["name"], source["label"], source["type"], source["query"]) == (
        "datasource",
        "Data source",
        "datasource",
        "prometheus",
    )
    assert {variable["name"] for variable in others} >= CHOICES
    for variable in others:
        assert variable["label"]
        if variable["type"] == "query":
            assert variable["refresh"] == 2, "on time range change: a target that has left is offered where it was"
            several = variable["name"] not in ONE_AT_A_TIME.get(name, ())
            assert (variable["includeAll"], variable["multi"]) == (several, several), variable["name"]
            if several:
                assert variable["current"]["value"] == ["$__all"]


@EVERY
def test_links_keep_variables_and_time(name: str) -> None:
    [link] = DASHBOARDS[name]["links"]
    assert link["type"] == "dashboards"
    assert set(link["tags"]) <= set(DASHBOARDS[name]["tags"])
    assert link["includeVars"]
    assert link["keepTime"]


@EVERY
def test_reloads_and_restarts_are_marked(name: str) -> None:
    marked = {annotation["name"] for annotation in DASHBOARDS[name]["annotations"]["list"]}
    assert marked >= {"Configuration reloaded", "Target down"}


@EVERY
def test_nobody_edits_what_the_next_start_overwrites(name: str) -> None:
    assert DASHBOARDS[name]["editable"] is False


def test_rates_use_the_rate_interval_and_counters_are_never_shown_raw() -> None:
    for one in everything():
        for call, window in re.findall(r"\b(i?rate)\([^\[\]]*\[([^\]]*)\]", one.expr):
            assert (call, window) == ("rate", "$__rate_interval"), one
        for match in re.finditer(r"\w+_(?:total|bucket|sum|count)\b(?=\{)", one.expr):
            before = one.expr[: match.start()]
            assert before.endswith(("rate(", "increase(")) or _only_its_labels(one.expr, match.start()), one


def _only_its_labels(expr: str, position: int) -> bool:
    """A counter that only says which series exist, or one that counts what is too rare for a rate."""
    rare = "tgi_probe_connection_setup_seconds_"
    which = ("group by (workload) (", "and on (target, workload, batch_size) (")
    return expr[position:].startswith(rare) or expr[:position].endswith(which)


@EVERY
def test_xy_charts_say_the_version_that_grafana_does_not_migrate(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        if panel["type"] == "xychart":
            assert tuple(int(part) for part in panel["pluginVersion"].split(".")) >= (11, 1, 0)


@EVERY
def test_fixed_colours_are_those_that_colour_blind_people_can_tell_apart(name: str) -> None:
    ours = {value for key, value in vars(colours).items() if isinstance(value, str) and key.isupper()}
    ours |= {*colours.BATCH_SIZES.values(), *colours.PARTS.values(), "transparent"}
    dashboard: Json = DASHBOARDS[name]
    used = texts(dashboard["panels"], "fixedColor") | texts(dashboard["panels"], "color")
    assert used <= ours


@EVERY
def test_a_panel_that_may_be_empty_says_why(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        reason = panel["fieldConfig"]["defaults"].get("noValue")
        if any(re.search(r"\b(tgi_(?!probe_)|vllm:|sglang:)", target["expr"]) for target in panel["targets"]):
            assert "metrics of the server" in reason, panel["title"]
        if reason is not None:
            assert len(reason) > 20, panel["title"]


def test_the_provisioning_files_name_a_prometheus_and_a_folder() -> None:
    folder = generate.FOLDER.parent / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"], source["jsonData"]["httpMethod"]) == ("prometheus", True, "POST")
    [provider] = yaml.safe_load((folder / "dashboards" / "tgi-probe.yaml").read_text())["providers"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
