"""The daemon that runs until it is told to stop.

app             its life: start, signals, stop; the composition root
probed_targets  the targets: starting, draining, whether they are well
reload          takes a new configuration
page_data       what the pages show and ask for
threads         waiting in the event loop for threads that are daemons
runner          the probes of one target: due -> attempt -> record
attempt         one of them: connect, settle, warm up, probe
manual_probe    those that people ask for
load            a background load: due -> send -> record
timing          clock, watchdog, timeouts of runners
ledger          where runners report to: metrics, log, status page
journal         the log
scoreboard      the newest results, for the status page
target_state    whether a target is up
transcript      one probe as text for a person
"""
