"""One simulated shard in this process with two clients: the router of real users, and our probes.

It watches what the probes' calls do to what belongs to users.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.simulator import Config, messages
from exporter.simulator.rank import Rank, RankBarrier


class CallFailed(Exception):
    """A call that the shard answered with an error. `code` is gRPC's."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class TimelessRank(Rank):
    """Its passes take no time: even a sleep of none lets other processes go first."""

    def hold(self, seconds: float) -> None:
        pass


@dataclass
class Harm:
    """What a probe did to users: its kind, and a sentence for people."""

    kind: str
    text: str


@dataclass
class SharedShard:
    """`socket` is a plain file: its identity tells a client whether the server was restarted.

    `users_batches` answers the ids of the batches that the router believes to be in the shard. `blocks_of_users`: the
    blocks that its users or its prefix cache use.
    """

    config: Config
    socket: Path
    random: random.Random
    harm: list[Harm] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    users_batches: Callable[[], set[int]] = set
    blocks_of_users: Callable[[], set[int]] = set
    died: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process: nothing is left of the old one."""
        self.lives += 1
        self.rank = TimelessRank(0, self.config, RankBarrier(1, 1.0))
        self.rank.urls = [f"unix://{self.socket}"]
        self.socket.unlink(missing_ok=True)
        self.socket.touch()
        # Two files made within one tick of the clock would look like one.
        os.utime(self.socket, ns=(self.lives, self.lives))

    def restart(self) -> None:
        """TGI's launcher starts shard and router together, so all that users had is gone."""
        self.start()
        self.died()

    @property
    def steps(self) -> int:
        """How many calls it has answered."""
        return self.calls.total()

    def call(self, method: str, request: Any) -> Any:
        """A call of the users' router. Raises CallFailed."""
        self.calls["users"] += 1
        try:
            return self.rank.answer(method, request).response
        except RuntimeError:
            raise AssertionError(f"the model's own router ended the shard with {method}") from None
        except Exception as error:
            raise CallFailed("INTERNAL", str(error)) from None

    def probe(self, method: str, data: bytes) -> bytes:
        """A call of a probe. Raises CallFailed."""
        self.calls["probes"] += 1
        wire: Any = messages.module_of(self.config.protocol)
        ids = self.users_batches()
        before = {batch_id: self.rank.batches.kept.get(batch_id) for batch_id in ids}
        places = self._places()
        try:
            response = self.rank.answer(method, getattr(wire, f"{method}Request").FromString(data)).response
        except RuntimeError as error:
            self._harmed("fatal", f"{method} ended the shard: {error}")
            self.restart()
            raise CallFailed("UNAVAILABLE", "Socket closed") from None
        except Exception as error:
            self._compare(method, before, places)
            raise CallFailed("INTERNAL", str(error)) from None
        self._compare(method, before, places)
        answer: bytes = response.SerializeToString()
        return answer

    def ours(self) -> set[int]:
        """The batches of probes that it keeps."""
        return set(self.rank.batches.kept) - self.users_batches()

    def _places(self) -> bytes | None:
        """All of the cache but the reserved block."""
        contents = self.rank.batches.contents
        return None if contents is None else contents.places[self.config.block_size :].tobytes()

    def _compare(self, method: str, batches: dict[int, Any], places: bytes | None) -> None:
        self._compare_batches(method, batches)
        self._compare_places(method, places)

    def _compare_places(self, method: str, before: bytes | None) -> None:
        after = self._places()
        if after == before or after is None or before is None:
            return
        size = len(after) // (self.config.kv_tokens - self.config.block_size) * self.config.block_size
        blocks = [
            1 + at // size for at in range(0, len(after), size) if after[at : at + size] != before[at : at + size]
        ]
        users = sorted(self.blocks_of_users() & set(blocks))
        # The router owns the others too, and may give them to a user at any moment.
        self._harmed("written", f"{method} wrote into blocks {blocks}, of which users have {users}")

    def _compare_batches(self, method: str, before: dict[int, Any]) -> None:
        kept = self.rank.batches.kept
        for batch_id, batch in before.items():
            now = kept.get(batch_id)
            if now is batch or batch is None:
                continue
            if now is not None:
                self._harmed("replaced", f"{method} replaced the users' batch {batch_id}")
            else:
                kind = "cleared" if method == "ClearCache" else "popped"
                self._harmed(kind, f"{method} took the users' batch {batch_id} away")

    def _harmed(self, kind: str, text: str) -> None:
        self.harm.append(Harm(kind, f"call {self.steps}: {text}"))


def decode_request(wire: Any, *batch_ids: int) -> Any:
    return wire.DecodeRequest(batches=[wire.CachedBatch(id=batch_id) for batch_id in batch_ids])
