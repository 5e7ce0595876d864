"""Servers without a GPU: a simulated TGI shard and router, to try dashboards and alerts and to test probes.

    options ─► Config ─► Shard ─► one Rank per address ─► BatchCache (what is kept) + Roofline (how long a pass takes)

    router_options ─► RouterConfig ─► Router ─► http_server, grpc_server ─► Engine ─► Batcher + Roofline

command         `tgi-probe simulate`
options         the options of the shard; `router_options`: those of the router
shard           gRPC servers, one per rank; `rank`: the calls; `messages`: protobuf; `batch_cache`: the kept batches
kv_contents     what the KV cache holds, with answers that depend on it
router          admits requests to the engine; `active_request`: one of them
http_server     TGI's and OpenAI's HTTP APIs; `http_formats`: their bodies
grpc_server     fmaas over h2; `grpc_library_server`: the same on gRPC's library; `fmaas`: the calls themselves
socket_server   sockets that note when data arrives; `listen_errors`: why an address cannot be had
engine          the thread that computes passes; `batcher`: which requests are in the next pass; `prefix_cache`
roofline        how long a pass takes on a GPU
tokenizer       texts to tokens
faults          failures by command; `lies`: answers that cannot be true; `admin`: the HTTP page that switches them on
record          what the server measured; `tgi_metrics`: the router's /metrics
"""

from exporter.simulator.admin import Admin
from exporter.simulator.command import add_arguments, run
from exporter.simulator.faults import Fault
from exporter.simulator.options import Config, OptionError, config_from
from exporter.simulator.record import AnsweredRequest, ServedCall
from exporter.simulator.roofline import Roofline
from exporter.simulator.router_options import RouterConfig, ServerTls
from exporter.simulator.shard import Shard

__all__ = [
    "Admin",
    "AnsweredRequest",
    "Config",
    "Fault",
    "OptionError",
    "Roofline",
    "RouterConfig",
    "ServedCall",
    "ServerTls",
    "Shard",
    "add_arguments",
    "config_from",
    "run",
]
