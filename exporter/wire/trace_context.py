"""The W3C trace context of a probe: a server's traces then have the id that our exemplars name.

Only the header (https://www.w3.org/TR/trace-context/): tgi-probe sends no spans.
"""

import secrets


def new_trace_id() -> str:
    """32 hexadecimal digits. The standard forbids all zeros, which chance does not produce."""
    return secrets.token_hex(16)


def trace_headers(trace_id: str) -> tuple[tuple[str, str], ...]:
    """The header: version 00, the trace, a parent span that is never sent, and sampled. Nothing without an id."""
    return (("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01"),) if trace_id else ()
