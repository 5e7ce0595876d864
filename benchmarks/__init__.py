"""What tgi-probe adds to what it measures, what it costs, and how it grows: `python -m benchmarks`. See README.md."""

from exporter.wire import grpc_env

grpc_env.prepare()  # as every command of tgi-probe does it
