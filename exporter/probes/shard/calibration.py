"""Calibrates prompts: how many tokens a shard's tokenizer makes of our words, and when to ask for that."""

import logging
import random
from collections.abc import Sequence

from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.plan import shard_prompts

logger = logging.getLogger("tgi_probe")
# A shard is serial: the request may wait behind a user's long prefill.
CALIBRATION_SECONDS = 10.0
# A server is not asked again after this number of questions without an answer, each before a probe that succeeded.
TRIES = 3


class Calibration:
    """The calibration for one server. Call `forget` when it may be another server."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.vocabulary = shard_prompts.UNKNOWN
        self._tokens = 0
        self._in_vain = 0

    def words(self, workload: Workload, rng: random.Random) -> list[str] | None:
        """Words to ask for before a probe of this workload; None where no question is needed or useful.

        A longer prompt has more words, so the server is asked again before the first one.
        """
        tokens = _tokens(workload)
        if self._in_vain >= TRIES or tokens <= max(self._tokens, shard_prompts.LEAST_WORDS + 1):
            return None
        return shard_prompts.words_to_ask_for(tokens, rng)

    def learn(self, workload: Workload, words: Sequence[str], pieces: Sequence[str]) -> None:
        found = shard_prompts.learned(words, pieces)
        if found is None:
            logger.debug("prompts stay longer than needed: %d tokens for %d words say nothing", len(pieces), len(words))
            self._in_vain += 1
            return
        self.vocabulary, self._tokens, self._in_vain = found, _tokens(workload), 0
        logger.debug("%d words of %d tokens each are known", len(found.words), found.tokens)

    def failed(self, failure: Failure) -> None:
        logger.debug("prompts stay longer than needed: their tokens could not be asked for: %s", failure)
        self._in_vain += 1

    def probe_failed(self, failure: Failure) -> None:
        """A failed probe explains earlier questions without an answer. An unreachable server may come back changed."""
        self._in_vain = 0
        if failure.outcome is Outcome.UNREACHABLE:
            self.forget()


def _tokens(workload: Workload) -> int:
    return min(shard_prompts.ASKED_TOKENS, workload.sequence_length)
