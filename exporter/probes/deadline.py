"""The message about a request whose timeout is over. Pure."""

import math

from exporter.config.notation import counted, write_duration
from exporter.config.workload import Workload

# gRPC's name for it, which we use for HTTP too.
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"


def out_of_time(workload: Workload, tokens: int, quiet: float = 0.0) -> str:
    """Which timeout is over, how far the answer came (`tokens` of each request), and what to change.

    `quiet`: seconds since the last token. More than half of the timeout means that the server hangs.
    """
    over = f"workload {workload.name}: timeout {write_duration(workload.timeout)} is over"
    if tokens < 1:
        return f"{over} before the first token; set a longer timeout, shorter prompts or smaller batch_sizes"
    wanted = counted(workload.decode_length, "token")
    if quiet > workload.timeout / 2:
        return f"{over}: no token for {quiet:.3g} s after {tokens} of {wanted}; the server hangs"
    if tokens > workload.decode_length:
        return f"{over} after {tokens} tokens, though {wanted} were asked for; the server does not end its answer"
    needed = write_duration(math.ceil(workload.timeout * workload.decode_length / tokens))
    return (
        f"{over} after {tokens} of {wanted}, which take about {needed}; set a longer timeout or a shorter decode_length"
    )
