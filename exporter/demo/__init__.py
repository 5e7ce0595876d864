"""`tgi-probe demo`: from a server that slows down to the page about it, without a GPU.

    simulated shard, router ◄─ daemon (this process) ◄─ Prometheus, with our rules ─► Alertmanager

command     starts them, says where to look, ends them
children    a process of the demo's own; a port for it
monitoring  Prometheus and Alertmanager, where they are installed; `alertmanager.yml`: its routes
"""
