"""What one probe's instants say. Pure: no I/O, no clock.

timeline    instants -> durations and throughput
certainty   which of these values are certain enough to be recorded
newest      the newest results of all targets, for the status page
slo         values -> good or bad
statuses    status codes -> outcomes
"""
