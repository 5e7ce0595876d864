"""The Prometheus rule file of a configuration, as YAML or as a Kubernetes PrometheusRule. Pure."""

from collections.abc import Iterator
from typing import Any

import yaml

from exporter.alerting import baselines, probing_alerts, promql, slo_rules
from exporter.alerting.rule_types import Alert, Options, Recording, RuleGroup
from exporter.config.settings import Settings

HEADER = """\
# Written by `tgi-probe rules`. Change the configuration and run it again instead of editing this file.
"""


def rule_groups(settings: Settings, options: Options) -> list[RuleGroup]:
    found = slo_rules.rule_inputs(settings, options)
    return [
        *(group for inputs in found for group in slo_rules.groups(inputs, options)),
        *baselines.groups(settings, found, options),
        *probing_alerts.groups(settings, options),
    ]


def rule_file(settings: Settings, options: Options, comments: list[str]) -> str:
    """What `rule_files:` of Prometheus takes. `comments` go to its head."""
    return _header(comments) + _dump(_document(settings, options))


def kubernetes_resource(settings: Settings, options: Options, comments: list[str], name: str) -> str:
    """A PrometheusRule for the Prometheus operator."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "tgi-probe"}},
        "spec": _document(settings, options),
    }
    return _header(comments) + _dump(resource)


def _header(comments: list[str]) -> str:
    return HEADER + "".join(f"# {comment}\n" for comment in comments)


def _document(settings: Settings, options: Options) -> dict[str, Any]:
    return {"groups": [_group(group, options) for group in rule_groups(settings, options)]}


def _group(group: RuleGroup, options: Options) -> dict[str, Any]:
    head: dict[str, Any] = {"name": group.name}
    if group.interval is not None:
        head["interval"] = promql.duration(group.interval)
    return head | {"rules": [dict(_rule(rule, options)) for rule in group.rules]}


def _rule(rule: Recording | Alert, options: Options) -> Iterator[tuple[str, Any]]:
    if isinstance(rule, Recording):
        yield "record", rule.record
        yield "expr", rule.expr
        if rule.labels:
            yield "labels", dict(rule.labels)
        return
    yield "alert", rule.name
    yield "expr", rule.expr
    if rule.wait:
        yield "for", promql.duration(rule.wait)
    yield "labels", {"severity": rule.severity, **rule.labels}
    yield (
        "annotations",
        {
            "summary": rule.summary,
            "description": rule.description,
            "runbook_url": f"{options.runbooks}#{rule.name.lower()}",
        },
    )


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines as YAML blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _dump(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
