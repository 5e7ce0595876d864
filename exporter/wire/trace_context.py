"""A W3C trace context for each probe, so that a server that traces files the probe under an id that our exemplars name.

Only the header (https://www.w3.org/TR/trace-context/): tgi-probe sends no spans anywhere.
"""

import secrets

HEADER = "traceparent"


def new_trace_id() -> str:
    """32 hexadecimal digits, not all zero (which the standard forbids and chance does not bring about)."""
    return secrets.token_hex(16)


def traceparent(trace_id: str) -> str:
    """The header's value: version 00, the trace, a parent span of our own that is never sent, and sampled."""
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"
