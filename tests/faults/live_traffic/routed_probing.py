"""Probes through the users' own router: the real requests, read as the simulated router reads them.

The router treats them as it treats a user's. So nothing that a probe asks for may touch the shard otherwise.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.pb import fmaas_pb2
from exporter.probes.router.fmaas_protocol import SERVICE, FmaasProtocol
from exporter.probes.router.http_protocol import HttpProtocol
from exporter.probes.router.protocol import RouterProtocol
from exporter.probes.router.request_builder import RequestBuilder
from exporter.simulator import Config, http_formats
from exporter.wire.http_codec import HttpRequest
from exporter.wire.message_framing import GrpcMessages
from tests.faults.live_traffic.shard_probing import SHAPES
from tests.faults.live_traffic.shared_shard import Harm, SharedShard
from tests.faults.live_traffic.users_router import UserRequest, UsersRouter

UNLIMITED = 0
# In thousandths: how often a client gives up in a step, and how often the whole server is restarted.
GIVEN_UP, RESTARTED = 10, 1


class RoutedProbes:
    """A router with users, and batches of probes in its queue. Everything random comes from one seed."""

    def __init__(self, seed: int, folder: Path, config: Config, target: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.shard = SharedShard(config, folder / "shard", self.random)
        self.router = UsersRouter(config, self.shard.call, self.random, self.harm)
        self.shard.died = self._died
        self._target = Target.model_validate({"name": "live", **target})
        self._in_flight: list[UserRequest] = []
        self._daemon_starts()

    @property
    def harm(self) -> list[Harm]:
        return self.shard.harm

    def run(self, steps: int) -> None:
        while self.shard.steps < steps and not self.harm:
            self.router.step()
            chance = self.random.randrange(1000)
            if chance < RESTARTED:
                self.seen["server restarted"] += 1
                self.shard.restart()
            elif chance < RESTARTED + GIVEN_UP:  # a timeout of ours, a stop or a kill: the connection ends
                self._give_up()
                if self.random.random() < 0.3:
                    self._daemon_starts()
            self._in_flight = [one for one in self._in_flight if one.received < len(one.answer)]
            if not self._in_flight:
                self._probe()

    def _daemon_starts(self) -> None:
        self.seen["daemons"] += 1
        self._protocol: RouterProtocol = (
            FmaasProtocol(self._target) if self._target.kind == "fmaas" else HttpProtocol(self._target)
        )
        self._builder = RequestBuilder(self._target, self._protocol)
        self._builder._random.seed(self.random.getrandbits(64))  # or a seed would not replay a run
        self._builder._order.sort()

    def _died(self) -> None:
        self.router.restarted()
        self._in_flight = []

    def _give_up(self) -> None:
        for request in self._in_flight:
            request.cancelled = True
            self.seen["given up"] += 1
        self._in_flight = []

    def _probe(self) -> None:
        sequence, decode, sizes = self.random.choice(SHAPES)
        workload = Workload.model_validate(
            {
                "name": "chat",
                "sequence_length": sequence,
                "decode_length": decode,
                "prompt_cache": self.random.choice(["miss", "hit"]),
            }
        )
        for text in self._builder.texts(workload, self.random.choice(sizes)):
            request = self._protocol.request(text, workload, self.random.getrandbits(31))
            prompt, truncate, tokens = read(request)
            self._in_flight.append(self.router.ask(prompt, truncate, tokens, ours=True))
            self.seen[request.path] += 1


def read(request: HttpRequest) -> tuple[str, int, int]:
    """The prompt, how many tokens of it stay, and how many come, as the router reads a request."""
    body = request.body
    match request.path:
        case "/generate_stream":
            form = http_formats.tgi(body, streams=True)
            return form.text, len(form.prompt), form.max_new_tokens
        case "/v1/completions" | "/v1/chat/completions":
            answer = http_formats.openai(body, request.path.startswith("/v1/chat"), "", 0)
            return answer.text, UNLIMITED, answer.max_new_tokens
        case _:
            assert request.path == f"{SERVICE}GenerateStream", f"{request.path} is no request of a probe"
            [message] = GrpcMessages().feed(body)
            single = fmaas_pb2.SingleGenerationRequest.FromString(message)
            stopping = single.params.stopping
            assert stopping.min_new_tokens == stopping.max_new_tokens
            return single.request.text, single.params.truncate_input_tokens, stopping.max_new_tokens
