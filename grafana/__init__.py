"""The Grafana dashboards, made from code: one file for each question, one JSON file for each dashboard.

    promql ─► queries ─► panels ─► batch_sizes | slo | latency | fleet | exporter ─► frame ─► dashboards/*.json
                            ▲
              colours  (what a colour means, the same everywhere)

`make dashboards` writes the JSON; `make test` fails when it differs, and runs every expression against a Prometheus.
"""
