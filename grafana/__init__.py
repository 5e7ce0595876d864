"""The Grafana dashboards, made from code: one module and one JSON file for each.

    panels, scatter, histograms, tables ─► batch_sizes, slo, latency, fleet, exporter ─► frame ─► dashboards/*.json

promql      expressions that several panels share
style       what all kinds of panel share; `colours`: what each colour means
panels      single values and lines over time; `scatter`, `histograms` and `tables`: the other kinds of panel
frame       what all dashboards share: variables, rows, annotations
generate    writes the JSON

`make dashboards` writes the JSON; `make test` fails when it differs, and runs every expression against a Prometheus.
"""
