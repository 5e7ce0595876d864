"""Probes of TGI shards, over gRPC.

prober          Prefill and Decode, step by step
batch           the requests of one batch, and what the answers mean
ranks           calls to every rank; `channel` opens the gRPC channels
uncleared       batches that a shard may still hold; `lock`: one prober at a time
calibration     how many tokens the shard makes of our words
error_hints     explains error messages of shards
"""
