"""How long a GPU needs for one forward pass: arithmetic only, no clock, no I/O.

The roofline model: a pass takes as long as the slower of its arithmetic and its memory traffic, plus a fixed overhead.
Decode reads all weights for one token per request, so its latency is flat until the arithmetic of the batch takes
longer than reading the weights (the knee), then rises. Prefill is bound by arithmetic nearly at once, so it is linear.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class Gpu:
    """One accelerator: dense 16-bit peak in flop/s, memory bandwidth in bytes/s, memory in bytes."""

    name: str
    peak_flops: float
    memory_bandwidth: float
    memory: float


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer. Sizes in bytes are per stored value; `max_positions` in tokens."""

    name: str
    parameters: float
    layers: int
    hidden_size: int
    kv_heads: int
    head_dim: int
    max_positions: int = 8192
    bytes_per_parameter: float = 2.0
    bytes_per_kv_value: float = 2.0

    @property
    def weight_bytes(self) -> float:
        return self.parameters * self.bytes_per_parameter

    @property
    def kv_bytes_per_token(self) -> float:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_kv_value


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu("h100", peak_flops=989e12, memory_bandwidth=3.35e12, memory=80e9),
            Gpu("a100", peak_flops=312e12, memory_bandwidth=2.04e12, memory=80e9),
            Gpu("l4", peak_flops=121e12, memory_bandwidth=0.3e12, memory=24e9),
        )
    }
)
MODELS: Mapping[str, Model] = MappingProxyType(
    {
        model.name: model
        for model in (
            Model("llama-3-8b", parameters=8.03e9, layers=32, hidden_size=4096, kv_heads=8, head_dim=128),
            Model("llama-3-70b", parameters=70.6e9, layers=80, hidden_size=8192, kv_heads=8, head_dim=128),
        )
    }
)


@dataclass(frozen=True)
class Roofline:
    """One model on `ranks` equal GPUs with tensor parallelism.

    The efficiencies are the share of peak that real kernels reach. `overhead_seconds` is added to every pass,
    `all_reduce_seconds` twice per layer when there is more than one rank. `memory_share` of each GPU holds weights and
    KV cache.
    `slowdown` stretches every pass (a sick GPU), `speed` compresses it (time running faster, for tests).
    """

    gpu: Gpu = GPUS["h100"]
    model: Model = MODELS["llama-3-8b"]
    ranks: int = 1
    compute_efficiency: float = 0.6
    memory_efficiency: float = 0.8
    memory_share: float = 0.9
    overhead_seconds: float = 0.002
    all_reduce_seconds: float = 10e-6
    slowdown: float = 1.0
    speed: float = 1.0

    def prefill_seconds(self, batch: int, sequence: float) -> float:
        """Seconds for the first token of `batch` prompts of `sequence` tokens each (the mean, when they differ)."""
        tokens = batch * sequence
        # Causal attention: each token looks at half the sequence on average; 4 flops per value looked at.
        attention = 2 * self.model.layers * self.model.hidden_size * tokens * sequence
        flops = 2 * self.model.parameters * tokens + attention
        return self._seconds(flops, self.model.weight_bytes + self.model.kv_bytes_per_token * tokens)

    def decode_seconds(self, batch: int, context_tokens_total: float, tokens_per_request: int = 1) -> float:
        """Seconds for one step of `batch` requests, which hold `context_tokens_total` tokens in the KV cache together.

        `tokens_per_request` is more than 1 with speculation: all are verified in the same pass.
        """
        linear = 2 * self.model.parameters * batch
        attention = 4 * self.model.layers * self.model.hidden_size * context_tokens_total
        flops = (linear + attention) * tokens_per_request
        return self._seconds(flops, self.model.weight_bytes + self.model.kv_bytes_per_token * context_tokens_total)

    def _seconds(self, flops: float, moved_bytes: float) -> float:
        compute = flops / (self.gpu.peak_flops * self.compute_efficiency * self.ranks)
        memory = moved_bytes / (self.gpu.memory_bandwidth * self.memory_efficiency * self.ranks)
        exchange = 2 * self.model.layers * self.all_reduce_seconds if self.ranks > 1 else 0.0
        return (max(compute, memory) + exchange + self.overhead_seconds) * self.slowdown / self.speed

    @property
    def knee(self) -> float:
        """The batch size from which decode with short contexts is bound by arithmetic."""
        compute = 2 * self.model.parameters / (self.gpu.peak_flops * self.compute_efficiency)
        return self.model.weight_bytes / (self.gpu.memory_bandwidth * self.memory_efficiency) / compute

    @property
    def kv_capacity(self) -> int:
        """Tokens of KV cache that fit beside the weights; zero or less when the weights alone do not fit."""
        free = self.gpu.memory * self.memory_share * self.ranks - self.model.weight_bytes
        return math.floor(free / self.model.kv_bytes_per_token)

    def slowed(self, slowdown: float) -> "Roofline":
        return replace(self, slowdown=slowdown)


class Jitter:
    """Factors around 1 with a mean of 1, lognormal, the same sequence for the same seed; `sigma` 0 is always 1."""

    def __init__(self, seed: int, sigma: float) -> None:
        self._random = random.Random(seed)
        self._sigma = sigma

    def factor(self) -> float:
        return math.exp(self._random.gauss(-(self._sigma**2) / 2, self._sigma)) if self._sigma else 1.0
