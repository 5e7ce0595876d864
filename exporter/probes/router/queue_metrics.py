"""How many users wait in a router's queue, by the router's own metrics. Pure."""

import math
import re

from exporter.observation import Failure, Outcome

# Requests that wait and requests that run: the names of TGI's routers, vLLM and SGLang.
QUEUE = frozenset({"tgi_queue_size", "vllm:num_requests_waiting", "sglang:num_queue_reqs"})
RUNNING = frozenset({"tgi_batch_current_size", "vllm:num_requests_running", "sglang:num_running_reqs"})
# Below it, a sum stays a finite number.
MOST_REQUESTS = 1e15
SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^\n]*\})?[ \t]+(\S+)", re.MULTILINE)


def users_waiting(exposition: str, own: int) -> int | None:
    """At most how many requests of users wait; None where the page has no queue. `own`: our requests.

    Ours may be waiting or running. So it is the lower of two bounds: all that wait, and all that are not ours.

    Raises Failure (malformed) where a value is no number: NaN read as 0 would mean that no user waits.
    """
    queue = running = None
    for match in SAMPLE.finditer(exposition):  # no list of lines: a page of short ones would take much memory
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
    if not abs(value) < MOST_REQUESTS:
        raise Failure(Outcome.MALFORMED, "OK", f"{name} is {text[:40]!r}, which is no count of requests")
    return value
