"""The metrics: their names, what is recorded, and the pages that show them. Only this folder knows prometheus_client.

catalogue     every metric: name, help, labels, bucket edges
record        observations -> values: the only module that records
families      counters, gauges and summaries, by family, target and series
histogram     histograms, with classic and native buckets
native        the exponential buckets of native histograms
bucket_edges  the edges of the classic ones, and why they are these
write_queue   writes that a page shows as of one instant
collector     the families as a `Collector` of prometheus_client, and the daemon's registry
formats       the formats of the page
pages         the page in each format: `lines` of text, or protobuf `messages`
pauses        pauses in long work
"""
