"""The HTTP side: who may connect, what they may see, and how little a slow or hostile client can take.

    server ─► accepted_connection ─► admission ─► access ─► routes ─► pages
    accepts   reads, sends, TLS    when         whether    which

server               accepts connections and bounds their number
accepted_connection  one client; `tls_stream`: TLS on its connection
admission            when a request is answered; `fair_queue` and `token_bucket`: in which order, at which pace
access               passwords: who may see a page
routes               which page a request gets; `messages`: requests and responses; `negotiation`: the format
status_page          the page for people; `tables` and `chart` are its parts, `page_style` its look
web_file             the keys of the web file; `tls`: its certificates and versions as Python's ssl takes them
web_file_state       the web file and its TLS certificates, read again when they change
health               `tgi-probe health`

The web file (TLS, passwords, rate limit) has the format that Prometheus' own exporters share (exporter-toolkit), so one
file serves them all.
"""
