"""`tgi-probe rules` and `tgi-probe slo`: Prometheus rules from the `slos` block, and whether the SLOs are met.

    settings ─► slo_rules + baselines + probing_alerts (rules as data) ─► rule_file (YAML)
    Prometheus ─► prometheus_query ─► slo_report (a table)

rules_command     `tgi-probe rules`
rule_types        the parts of a rule file
slo_rules         the error ratio, the budget and the burn-rate alerts of one SLO
burn_rates        the arithmetic of windows and bad probes
baselines         alerts on regressions
probing_alerts    alerts on targets and on the probing itself
observed          what was observed, for the texts of alerts
already_paged     one page for one outage
startup_grace     no alerts while a server loads its model
advice            notes and warnings about SLOs
promql            how values and expressions are written
rule_file         the rules as YAML
slo_report        `tgi-probe slo`
prometheus_query  queries over Prometheus' HTTP API

The daemon loads none of it.
"""
