"""What tgi-probe adds to what it measures, what it costs, and how it grows: `python -m benchmarks`. See README.md."""

from exporter import grpc_core

grpc_core.prepare()  # as every command of tgi-probe does it
