"""One probe of one target, for each kind of server. A probe is a function that returns facts.

interface   what the daemon asks of every kind
opening     the prober for a target: the only exhaustive `match` on kinds
shard/      gRPC to TGI shards
router/     streams through routers: gRPC (fmaas) and HTTP
"""
