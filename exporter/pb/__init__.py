"""Messages of the servers we probe, generated from proto/ by proto/generate.py. Never edited by hand."""
