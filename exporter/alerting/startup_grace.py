"""The grace period in which a server may load its model before its alerts fire. Pure.

It ends with the target's first success, or `startup_grace` after the start of the daemon.
"""

from exporter.alerting import promql
from exporter.alerting.rule_types import Options, Rule, recording

STARTING = "tgi_probe:target:starting"


def recordings(options: Options) -> tuple[Rule, ...]:
    """The rule of a series that exists for each target in its grace period, and keeps its alerts from firing.

    A target is in its grace period while no daemon that probes it has had a success or is older than the grace.
    """
    if not options.grace:
        return ()
    same = options.on("target")
    age = "time() - process_start_time_seconds"
    grace = promql.number(options.grace)

    def probed(comparison: str) -> str:
        return f"(tgi_probe_target_up and on (job, instance) {age} {comparison} {grace})"

    expr = (
        f"max by ({same}) (tgi_probe_last_success_timestamp_seconds) == 0\n"
        f"and on ({same}) {probed('<')}\n"
        f"unless on ({same}) {probed('>=')}"
    )
    return (recording(STARTING, expr),)


def unless_starting(options: Options, window: float = 0.0) -> str:
    """The end of an expression that must not fire in the grace period, nor `window` seconds after it."""
    if not options.grace:
        return ""
    starting = f"last_over_time({STARTING}[{promql.duration(window)}])" if window else STARTING
    return f"\nunless on ({options.on('target')}) {starting}"
