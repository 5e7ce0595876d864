"""From the `slos` block to alerts: Prometheus rules, the arithmetic behind them, and the answer in a terminal.

    settings ─► burn (windows, bad probes that fire) ─► objectives + guards (rules as data) ─► rules (the file)
    Prometheus ─► report (the table of `tgi-probe slo`)

All of it is pure except `report`, and none of it is loaded by the daemon.
"""
