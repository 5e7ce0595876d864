"""The limits of the guards: neither sooner than a healthy server can answer, nor later than promised."""

from typing import Any

import pytest

from exporter.alerting.observed import SKIP_TEXTS
from exporter.alerting.probing_alerts import rules, stale_after
from exporter.alerting.rule_types import Options
from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.observation import SkipReason


@pytest.mark.parametrize(
    ("workload", "seconds"),
    [
        pytest.param({"interval": "30s"}, 90, id="three intervals"),
        pytest.param({"interval": "1s"}, 60, id="four scrapes, since what is not scraped is not seen"),
        pytest.param(
            {"interval": "30s", "timeout": "5m"}, 480, id="a slow success of 5m and a rest as long, less the wait of 2m"
        ),
        pytest.param({"interval": "0s"}, 360, id="back to back, three times as long as a probe and its rest may last"),
        pytest.param(
            {"load": {"mode": "open", "rate": "0.01/s"}}, 300, id="three times the mean time between arrivals"
        ),
    ],
)
def test_a_success_may_be_so_old(workload: dict[str, Any], seconds: float) -> None:
    settings = Settings.model_validate(
        {
            "targets": [{"name": "t", "kind": "fmaas", "address": "h:1"}],
            "workloads": [{"name": "w", **workload}],
            "max_duty_cycle": 0.5,
        }
    )
    assert stale_after(settings.workloads[0], settings, Options()) == seconds


def test_every_reason_to_skip_has_words_in_the_alerts() -> None:
    assert set(SKIP_TEXTS) == set(SkipReason)


def test_the_alert_of_a_quarantine_names_every_limit_that_releases_it() -> None:
    targets = [{"name": "t", "address": "unix:///s-0"}]
    settings = Settings.model_validate({"targets": targets, "workloads": [{"name": "w"}]})
    [alert] = [rule for rule in rules(settings, Options())["rules"] if rule.get("alert") == "TgiProbeQuarantined"]
    assert all(limit in str(alert) for limit in Target.LIMITS)
