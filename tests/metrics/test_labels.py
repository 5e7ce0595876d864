"""The labels that a target may be given."""

from exporter.config.settings import Settings
from exporter.config.target import RESERVED_LABELS
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics


def test_no_label_of_a_target_can_stand_twice_in_one_sample() -> None:
    """Prometheus drops a whole page for such a sample."""
    settings = Settings.model_validate(
        {"targets": [{"name": "a", "address": "h:1"}], "workloads": [{"name": "w"}]},
    )
    families = Metrics(layout(settings)).families.collector.families
    named = {label for family in families if "target" in family.label_names for label in family.label_names}
    assert {"target", "count", "measure"} <= named <= RESERVED_LABELS
