"""The HTTP side: who may connect, what they may see, and how little a slow or hostile client can take.

    server ─► accepted_connection ─► admission ─► access ─► routes ─► pages
    accepts   reads, sends, TLS    when         whether    which

The web file (TLS, passwords, rate limit) has the format that Prometheus' own exporters share (exporter-toolkit), so one
file serves them all.
"""
