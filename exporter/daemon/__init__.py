"""The daemon that runs until it is told to stop.

app           the composition root: signals, reload, drain
runner        the probes of one target: due -> attempt -> record
load          a background load: due -> send -> record
ledger        where runners report to: metrics, log, status page
"""
