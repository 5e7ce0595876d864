"""For all tests: what must be done before grpc is imported anywhere."""

from exporter import grpc_core

grpc_core.prepare()
