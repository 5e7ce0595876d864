"""`tgi-probe bench`: one sweep over batch sizes, and what it answers.

command      from the options to the exit code
options      the flags, and what they ask for
shapes       named lengths of prompts and answers
sweep        the probes
precision    when `--runs auto` has made enough
results      the raw values, as JSON
statistics   quantiles with intervals, warm-up, drift, change
summary      rows of tables
advice       which batch size to run
compare      what has changed since a baseline
tables       Markdown, JSON, CSV
html_report  one page
reports      who is told how the sweep goes on
progress     how far it is
screen       the live screen, a process of its own
"""
