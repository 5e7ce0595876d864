"""The metrics: their names, what is recorded, and the pages that show them. Only this folder knows prometheus_client.

catalogue     every metric: name, help, labels, bucket edges
record        observations -> values: the only module that records
families      counters, gauges and summaries, by family, target and series; `histogram` beside it
collector     the families as a `Collector` of prometheus_client, and the daemon's registry
pages         the page in each format: `lines` are its text, `blocks` keep it compressed
"""
