"""One probe of one target, for each kind of server. A probe is a function that returns facts.

interface       what the daemon asks of every kind
opening         the prober for a target: the only exhaustive `match` on kinds
shard/          gRPC to TGI shards
router/         streams through routers: gRPC (fmaas, vLLM, SGLang) and HTTP
quarantine      batches that ended a server; `crash_check`: whether a server has ended
disturbed       what was measured while this process was held up
deadline        the message about a timeout
connect_check   `tgi-probe check --connect`; `identify`: which server answers
"""
