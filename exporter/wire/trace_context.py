"""The W3C trace context of a probe: a server's traces then have the id that our exemplars name.

Only the header (https://www.w3.org/TR/trace-context/): tgi-probe sends no spans.
"""

import secrets

HEADER = "traceparent"


def new_trace_id() -> str:
    """32 hexadecimal digits. The standard forbids all zeros, which chance does not produce."""
    return secrets.token_hex(16)


def traceparent(trace_id: str) -> str:
    """The header's value: version 00, the trace, a parent span that is never sent, and sampled."""
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"
