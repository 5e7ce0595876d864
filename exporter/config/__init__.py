"""The configuration: its keys, where values come from, and how they are written.

settings        the whole; the blocks are `target`, `workload` and `slo`
fields          the types of values, and the base class of all blocks
notation        how durations, rates, addresses and lists are written
request_headers  headers that a target wants with each request
json_object     a mapping that is sent as JSON
sources         file and environment -> settings
variables       the environment variables, also those of a single target
yaml_file       YAML files, read and written
bounded_read    the bytes of a file, up to a size and a time
paths           relative file names
errors          what is wrong, as lines for people
dump            the settings as YAML, for /config
daemon_address  where a running daemon listens, also when its file is broken
secrets         hides secrets in texts
arguments       the command-line parser
"""
