"""The time that a server has to load its model: what must not page before a target's first success. Pure.

And only while its daemon is young: a target that never comes pages after the grace, one that goes away later at once.
"""

from exporter.alerting import promql
from exporter.alerting.rule import Options, Recording

STARTING = "tgi_probe:target:starting"


def recordings(options: Options) -> tuple[Recording, ...]:
    """Present, for a target, while none of its daemons has had a success since its start and none is older than the
    grace. Where it is missing, alerts page: so do those that Prometheus evaluates before it.
    """
    if not options.grace:
        return ()
    same = options.on("target")
    age = "time() - process_start_time_seconds"
    grace = promql.number(options.grace)

    def watched(aged: str) -> str:
        return f"(tgi_probe_target_up and on (job, instance) {age} {aged} {grace})"

    expr = (
        f"max by ({same}) (tgi_probe_last_success_timestamp_seconds) == 0\n"
        f"and on ({same}) {watched('<')}\n"
        f"unless on ({same}) {watched('>=')}"
    )
    return (Recording(STARTING, expr),)


def spared(options: Options, window: float = 0.0) -> str:
    """What follows an expression that must not fire at a start, nor `window` seconds after it."""
    if not options.grace:
        return ""
    starting = f"last_over_time({STARTING}[{promql.duration(window)}])" if window else STARTING
    return f"\nunless on ({options.on('target')}) {starting}"
