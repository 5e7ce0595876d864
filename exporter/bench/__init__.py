"""`tgi-probe bench`: one sweep over batch sizes, as tables.

sweep   the command, and the probes
tables  their statistics, and the output formats
"""
