"""What is probed and when. Pure: no I/O, no clock.

targets     the settings of one target and its workloads; what a server says of itself; what must not be sent to it
workload    how many words and tokens a workload sends
schedule    when each probe is due; pauses after failures
arrivals    when each request of a background load is due
"""
