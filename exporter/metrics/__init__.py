"""The metrics: what they are called, what is recorded to them, and the pages that show them.

catalogue     every metric: name, help, labels, edges
record        observations -> values: the only module that records
instruments   counters, gauges and histograms
pages         their text in each format
"""
