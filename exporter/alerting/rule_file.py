"""The Prometheus rule file of a configuration, as YAML or as a Kubernetes PrometheusRule. Pure."""

from typing import Any

import yaml

from exporter.alerting import baselines, probing_alerts, slo_rules
from exporter.alerting.rule_types import Options
from exporter.config.settings import Settings

HEADER = "# Written by `tgi-probe rules`. Change the configuration and run it again instead of editing this file.\n"


class RuleDumper(yaml.SafeDumper):
    """Writes expressions of several lines as YAML blocks."""

    def _text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


RuleDumper.add_representer(str, RuleDumper._text)


def rule_groups(settings: Settings, options: Options) -> list[dict[str, Any]]:
    found = slo_rules.rule_inputs(settings, options)
    return [
        *(group for inputs in found for group in slo_rules.groups(inputs, options)),
        baselines.rules(settings, found, options),
        probing_alerts.rules(settings, options),
    ]


def rule_file(settings: Settings, options: Options, comments: list[str], resource: str = "") -> str:
    """What `rule_files:` of Prometheus takes; or the PrometheusRule of that name for the Prometheus operator.
    `comments` go to its head.
    """
    document: dict[str, Any] = {"groups": rule_groups(settings, options)}
    if resource:
        document = {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": resource, "labels": {"app.kubernetes.io/name": "tgi-probe"}},
            "spec": document,
        }
    head = HEADER + "".join(f"# {comment}\n" for comment in comments)
    return head + yaml.dump(document, Dumper=RuleDumper, sort_keys=False, allow_unicode=True, width=120)
