"""Every key of the configuration, where values come from, and how they are written.

settings    the whole: blocks of `target`, `workload`, `slo`, and what has to fit between them
sources     file, environment variables and flags -> settings; what is said when they are wrong
dump        the settings written out again, for /config
notation    how durations, addresses and lists are written
paths       where relative file names start
"""
