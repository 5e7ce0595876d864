"""Whether the calls of two batches mixed, by what the simulated shard served."""

from collections.abc import Iterable
from itertools import groupby

from exporter.simulator.record import ServedCall

COMPUTED = ("Prefill", "Decode", "FilterBatch")


def interleaved(record: Iterable[ServedCall]) -> bool:
    """Whether on some rank a call for another batch came between the calls for one."""
    orders: dict[int, list[int]] = {}
    for served in record:
        if served.method in COMPUTED and served.batch_id is not None:
            orders.setdefault(served.rank, []).append(served.batch_id)
    for order in orders.values():
        together = [batch_id for batch_id, _ in groupby(order)]
        if len(together) != len(set(together)):
            return True
    return False
