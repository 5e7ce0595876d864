"""Whether users wait in a router's queue, read off the router's own metrics. Pure."""

import math
import re

from exporter.observation import Failure, Outcome

# How many requests wait, and how many are being answered; as TGI's routers, vLLM and SGLang call them.
QUEUE = frozenset({"tgi_queue_size", "vllm:num_requests_waiting", "sglang:num_queue_reqs"})
RUNNING = frozenset({"tgi_batch_current_size", "vllm:num_requests_running", "sglang:num_running_reqs"})
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^\n]*\})?[ \t]+(\S+)")


def users_waiting(exposition: str, own: int) -> int | None:
    """At most how many requests of others wait, `own` of ours being somewhere in there; None where the page does not
    say.

    Ours may all be running or all be waiting, which no one tells. So it counts the most users that can be waiting:
    never more than wait at all, never more than there are of others.

    Raises Failure (malformed) where a number is none: NaN read as 0 would mean that nobody waits.
    """
    queue = running = None
    for line in exposition.splitlines():
        match = SAMPLE.match(line)
        if match is None:
            continue
        if match[1] in QUEUE:
            queue = (queue or 0.0) + _number(match[1], match[2])
        elif match[1] in RUNNING:
            running = (running or 0.0) + _number(match[1], match[2])
    if queue is None:
        return None
    return round(max(0.0, min(queue, queue + (running or 0.0) - own)))


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Failure(Outcome.MALFORMED, "OK", f"{name} is {text[:40]!r}, which is no count of requests")
    return value
