"""Streams through routers and OpenAI-like servers, over gRPC (fmaas) and HTTP."""
