"""Streams through routers and OpenAI-like servers.

prober              probes: batches of requests
background          loads: single requests, many in flight
request_builder     requests whose prompts have the wanted number of tokens
protocol            what a protocol must offer: `fmaas_protocol`, `engine_protocol` and `http_protocol` do
grpc_calls          gRPC calls over our own connections
engine_services     the services of vLLM and SGLang: what to send, and what the answers mean
given_up            requests that are aborted by their ids, because their stream ended early
http_apis           the requests and events of TGI's API and of the OpenAI API
token_counts        how many tokens an answer's messages carry
server_errors       Failures of the servers' errors; `hints`: what to change in the configuration
pool                connections; `warm_connections`: ready for a load; `facts_cache`: what the server says of itself
router_queue        whether users wait; `queue_metrics` reads the router's metrics
on_demand_thread    work that the thread with the answers must not wait for
"""
