"""The metrics: their names, what is recorded, and the pages that show them. Only this folder knows prometheus_client.

catalogue     every metric: name, help, labels, bucket edges
record        observations -> values: the only module that records
families      counters, gauges and summaries, by family, target and series
histogram     histograms with classic buckets
bucket_edges  their edges, and why they are these
write_queue   writes that a page shows as of one instant
collector     the families as a `Collector` of prometheus_client, and the daemon's registry
formats       the formats of the page
pages         the page in each format: `lines` are its text, `blocks` keep it compressed
pauses        pauses in long work
"""
