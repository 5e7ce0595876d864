"""TGI shards over gRPC: synchronous stubs, the clock read beside each call."""
