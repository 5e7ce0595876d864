"""How many words make a prompt of a wanted length in tokens, learned from what the server counts. Pure.

The words are ones that nearly every tokenizer has as one token, so a first guess is close.
"""

import math
from dataclasses import dataclass, field

# The words of the first sample, and by how many at most the second is longer.
FIRST_WORDS, FAR_WORDS = 8, 256
# Tokens, beside those of one word, by which a prompt may be off: its first word may be several tokens.
SPARE_TOKENS = 2
# In tokens: what a word of at most four letters can be, and what a template can add.
LEAST_PER_WORD, MOST_PER_WORD, MOST_ADDED = 0.3, 8, 100_000


@dataclass(slots=True)
class TokenEstimate:
    """The estimate `tokens = added + words * per_word`, fitted to what the server counted.

    `added` is what the server adds to every prompt, such as a first token or a chat template. `samples` maps words to
    the tokens that were counted for them.
    """

    per_word: float = 1.0
    added: float = 0.0
    samples: dict[int, float] = field(default_factory=dict)

    def words(self, tokens: float) -> int:
        """How many words make that many tokens, at least one."""
        return max(1, round((tokens - self.added) / self.per_word))

    def tokens(self, words: int) -> int:
        return max(1, round(self.added + words * self.per_word))

    def learn(self, words: int, tokens: float) -> None:
        """Add a sample: `words` were counted as `tokens` (the mean over a batch). It takes two lengths to fit both
        numbers; with one length only `added` changes.
        """
        self.samples[words] = tokens
        other = max(self.samples, key=lambda known: (abs(known - words), known))
        span = words - other
        # Two lengths that are close together say little about the slope: their words differ by chance.
        if abs(span) >= max(3, words // 4):
            self.per_word = min(MOST_PER_WORD, max(LEAST_PER_WORD, (tokens - self.samples[other]) / span))
        self.added = tokens - words * self.per_word
        if len(self.samples) > 16:
            self.samples.pop(next(iter(self.samples)))


class PromptLengths:
    """Finds how many words make a prompt of the wanted number of tokens, which only the server can count.

        while not settled(wanted):
            send a text of next_words(wanted) words, and tell `learn` how many tokens the server counted
        for each probe: send words(wanted) words, and tell `check` how many tokens the server counted

    With `truncates` the server cuts longer prompts to the wanted length, so that one word too many gives the exact
    length.
    """

    def __init__(self, truncates: bool = False) -> None:
        self._truncates = truncates
        self._estimate = TokenEstimate()
        # By wanted tokens: the words that make them, or else the fewest tokens that a prompt can have.
        self._words: dict[int, int] = {}
        self._shortest: dict[int, int] = {}
        self._server_counts = True

    def forget(self) -> None:
        """Start again for what may be another server. The old estimate is the first guess."""
        self._words.clear()
        self._shortest.clear()
        self._server_counts = True

    def settled(self, wanted: int) -> bool:
        return wanted in self._words or wanted in self._shortest

    def words(self, wanted: int) -> int:
        """How many words to send for a prompt of that many tokens."""
        return self._words[wanted] if wanted in self._words else self._estimated_words(wanted)

    def least(self, wanted: int) -> tuple[int, int] | None:
        """Where no prompt can be that short: the fewest tokens of a prompt, and how many of them the server adds."""
        if wanted not in self._shortest:
            return None
        return self._shortest[wanted], max(1, round(self._shortest[wanted] - self._estimate.per_word))

    @property
    def estimated(self) -> bool:
        """Whether one token per word is assumed, because the server gives no plausible count."""
        return not self._server_counts and not self._truncates

    def tokens(self, words: int, wanted: int) -> int:
        """How many tokens a prompt of that many words has, where the server did not count it."""
        if self._server_counts:
            return min(self._estimate.tokens(words), wanted) if self._truncates else self._estimate.tokens(words)
        return min(words, wanted)

    def next_words(self, wanted: int) -> int:
        """How many words the next sample needs. Short ones first: a wrong guess could exceed the server's limits."""
        known = self._estimate.samples
        if not known:
            return min(FIRST_WORDS, wanted)
        if len(known) == 1:
            [(words, tokens)] = known.items()
            half = words + min(FAR_WORDS, int(wanted - tokens) // 2)
            if half >= 2 * words:
                return half
        return self._estimated_words(wanted)

    def learn(self, wanted: int, words: int, tokens: int | None) -> None:
        """The server counted `tokens` (None: it did not) of a text of that many words, sent for `wanted` tokens."""
        if tokens is None or not self.plausible(words, wanted, tokens):
            self._give_up(wanted)
            return
        if self._truncates and tokens >= wanted:
            self._words[wanted] = words
            return
        self._add_sample(words, tokens)
        if self._is_constant():
            self._give_up(wanted)
        elif self._is_shortest(words, tokens, wanted):
            self._shortest[wanted] = tokens
        elif not self._truncates and not self.off(wanted, tokens) and self._certain(wanted, words):
            self.settle(wanted)

    def settle(self, wanted: int) -> None:
        """Accept the present estimate for this length."""
        self._words[wanted] = self._estimated_words(wanted)

    def check(self, wanted: int, tokens: float) -> bool:
        """Whether prompts for `wanted` tokens, counted as `tokens` (the mean), are off by more than a word or two.

        A smaller difference is corrected from the next prompt on.
        """
        words = self.words(wanted)
        self._server_counts = True
        if abs(tokens - wanted) > self._estimate.per_word + 1 and not (self._truncates and tokens >= wanted):
            if self.off(wanted, tokens):  # another model, probably with another template
                self._estimate = TokenEstimate(self._estimate.per_word)
            self._add_sample(words, tokens)
            if self._is_shortest(words, tokens, wanted):
                self._shortest[wanted] = math.ceil(tokens)
            self.settle(wanted)
        return self.off(wanted, tokens)

    def off(self, wanted: int, tokens: float) -> bool:
        """Whether it differs by more than 1 % and more than a word. (The first word differs from prompt to prompt.)"""
        return abs(tokens - wanted) > max(self._estimate.per_word + SPARE_TOKENS, wanted / 100)

    def plausible(self, words: int, wanted: int, tokens: int) -> bool:
        """Whether it can be a count: a word is at least one token. Some servers do not count what their cache holds."""
        least = min(words, wanted) if self._truncates else words
        return least <= tokens <= words * MOST_PER_WORD + MOST_ADDED

    def _estimated_words(self, wanted: int) -> int:
        if not self._server_counts:
            return wanted
        spare = 1.5 * self._estimate.per_word + 0.5 if self._truncates else 0
        return self._estimate.words(wanted + spare)

    def _certain(self, wanted: int, words: int) -> bool:
        """Whether there are two samples, or one that is exact: one sample does not tell what another word adds."""
        return len(self._estimate.samples) > 1 or self._estimated_words(wanted) == words

    def _add_sample(self, words: int, tokens: float) -> None:
        expected = self._estimate.tokens(words)
        if len(self._estimate.samples) > 1 and abs(tokens - expected) > max(
            self._estimate.per_word + SPARE_TOKENS, expected / 4
        ):
            self._estimate = TokenEstimate()  # another server, or another model
        self._estimate.learn(words, tokens)

    def _is_shortest(self, words: int, tokens: float, wanted: int) -> bool:
        """Whether a prompt of one word is already longer than wanted."""
        return words == 1 and tokens > wanted + max(self._estimate.per_word, wanted / 100)

    def _is_constant(self) -> bool:
        """Whether the server gives a long text the same number as a short one: then it does not count."""
        known = self._estimate.samples
        return len(known) > 1 and max(known) - min(known) > 3 and known[max(known)] <= known[min(known)]

    def _give_up(self, wanted: int) -> None:
        """Assume one token per word."""
        self._server_counts = False
        self._estimate = TokenEstimate()
        self._words[wanted] = wanted
