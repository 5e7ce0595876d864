"""The guarded HTTP side: who may connect, what they may see, and how little a slow or hostile client can take.

    web file ─► config ─► tls (who connects) ─► listener (how long, how often, whom) ─► access (who may see) ─► pages

The web file has the format that Prometheus' own exporters share (exporter-toolkit), so that one file serves them all.
"""
