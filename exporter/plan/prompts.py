"""Texts of a wanted length in tokens, which no prefix cache has seen. Pure; randomness comes in as an argument.

The length of a text in tokens is only known to the server. These are short words that nearly every tokenizer has as
one token, so a first guess is close; then `Lengths` learns from what the server counts. Prompts of one length are the
same words in another order behind another first word, so that they stay equally long where some words are more than
one token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

_TEXT = """
    able act add age ago air all also and any are area arm art ask away baby back bad bag ball bank base bear beat
    bed best big bird blue boat body bone book born both box boy burn busy but buy call came can car card care case
    city coat cold come cook cool copy corn cost crop cry cut dark day dead deal dear deep did does dog done door
    down draw drop dry duty each ear ease east eat edge egg else end even ever eye face fact fair fall far farm fast
    fat fear feed feel feet few fill find fine fire fish fit five flat flow fly food foot form four free full fun
    game gas gave get girl give glad gold gone good got gray grow gun hair half hand hard hat have head hear heat
    held help high hill hit hold hole home hope hot hour how huge hunt ice idea iron job join joy jump just keep key
    kind king knew know lady lake land last late law lay lead left leg less lie life lift like line list live log
    lone long look lost lot loud love low made main make man many map mark mass may mean meat meet men mile milk
    mind mine miss mix moon more most move much must name near neck need new next nine noon nor nose note off oil
    old once one only open our out over own page pair part pass past path pay plan play poor port post pull push put
    race rail rain ran read real red rest rich ride ring rise road rock roll room root rope rose row rule run safe
    said sail salt same sand saw say sea seat see seed seem self sell send sent set ship shoe shop show side sign
    sing sit six size skin sky slip slow snow soft soil some son song soon spot star stay step stop such suit sun
    sure swim tail take talk tall team tell ten term test than that the them then they thin this time tiny tire tone
    too took tool top town tree trip true try tube turn two type unit use vary very view wait walk wall want war
    warm was wash wave way wear week well went were west what when who why wide wife wild will win wind wing wire
    wish with wood word work yard year yes yet you
"""
WORDS = tuple(_TEXT.split())

# The lengths, in words, of the first two texts that a server counts.
FIRST_WORDS, FAR_WORDS = 8, 256
# How far a prompt may be off, beside one word: the first word may be one of several tokens.
SPARE_TOKENS = 2
# What a word of at most four letters can come to, and a template add, in tokens.
LEAST_OF_A_WORD, MOST_OF_A_WORD, MOST_ADDED = 0.3, 8, 100_000


class Prompts:
    """Texts that differ from their very first word on, for as long as there are words: hundreds in a row.

    `hit` repeats one text for ever, to measure what a prefix cache has kept. Prompts with the same `order` take the
    same words for the same length.
    """

    def __init__(self, random: Random, hit: bool = False, order: Sequence[str] | None = None) -> None:
        self._random = random
        self._order = random.sample(WORDS, len(WORDS)) if order is None else list(order)
        self._turn = random.randrange(len(WORDS)) if hit else 0
        self._hit = hit
        self._kept: dict[int, str] = {}

    def texts(self, count: int, words: int) -> list[str]:
        """`count` texts of so many words each."""
        if self._hit:
            if words not in self._kept:
                self._kept[words] = self._new(1, words)[0]
            return [self._kept[words]] * count
        return self._new(count, words)

    def _new(self, count: int, words: int) -> list[str]:
        size = words - 1
        rest = (self._order * (size // len(WORDS) + 1))[:size]
        self._random.shuffle(rest)
        twice = (
            rest + rest
        )  # each text takes them from another place on: to shuffle for each would cost more than the probe
        texts = []
        for number in range(count):
            first = self._order[self._turn % len(WORDS)]
            self._turn += 1
            at = number * size // count
            texts.append(" ".join([first, *twice[at : at + size]]))
        return texts


@dataclass(slots=True)
class Ruler:
    """How many words make a prompt of so many tokens: `tokens = beside + words * each`, as the server counts.

    `beside` is what the server adds, such as a first token or a chat template. Only what was counted moves it.
    """

    each: float = 1.0
    beside: float = 0.0
    counted: dict[int, float] = field(default_factory=dict)

    def words(self, tokens: float) -> int:
        """At least one: a prompt cannot be shorter."""
        return max(1, round((tokens - self.beside) / self.each))

    def tokens(self, words: int) -> int:
        return max(1, round(self.beside + words * self.each))

    def learn(self, words: int, tokens: float) -> None:
        """`words` were counted as `tokens` (the mean over a batch). Two lengths tell both unknowns, one the sum."""
        self.counted[words] = tokens
        other = max(self.counted, key=lambda known: (abs(known - words), known))
        span = words - other
        # Too close together, the chance in the words would pass for a slope.
        if abs(span) >= max(3, words // 4):
            self.each = min(MOST_OF_A_WORD, max(LEAST_OF_A_WORD, (tokens - self.counted[other]) / span))
        self.beside = tokens - words * self.each
        if len(self.counted) > 16:
            self.counted.pop(next(iter(self.counted)))


class Lengths:
    """Finds out, length by length, how many words make a prompt of the wanted tokens at one server.

    First `next_words` are asked about and `learn` is told what was counted, until a length is `settled`; after that
    `check` compares what the server counts of each probe. With `truncates` the server cuts a prompt that is too long to
    the wanted length, so that a word too many makes it exact.
    """

    def __init__(self, truncates: bool = False) -> None:
        self._truncates = truncates
        self._ruler = Ruler()
        # By the wanted tokens: the words that make them, and where nothing does the fewest tokens that a prompt has.
        self._words: dict[int, int] = {}
        self._least: dict[int, int] = {}
        self._counts = True

    def forget(self) -> None:
        """It may be another server: what was found out is a guess from now on."""
        self._words.clear()
        self._least.clear()
        self._counts = True

    def settled(self, wanted: int) -> bool:
        return wanted in self._words or wanted in self._least

    def words(self, wanted: int) -> int:
        """To send, for a prompt of so many tokens."""
        return self._words[wanted] if wanted in self._words else self._guess(wanted)

    def least(self, wanted: int) -> tuple[int, int] | None:
        """Where no prompt can be that short: the fewest tokens that one has, and how many of them the server adds."""
        if wanted not in self._least:
            return None
        return self._least[wanted], max(1, round(self._least[wanted] - self._ruler.each))

    @property
    def estimated(self) -> bool:
        """Whether lengths are estimated, one token for each word, because the server tells none that can be true."""
        return not self._counts and not self._truncates

    def tokens(self, words: int, wanted: int) -> int:
        """How many tokens a prompt of so many words has, where the server does not say."""
        if self._counts:
            return min(self._ruler.tokens(words), wanted) if self._truncates else self._ruler.tokens(words)
        return min(words, wanted)

    def next_words(self, wanted: int) -> int:
        """How many words to ask about: short texts first, for a guess from one could be over the server's limits."""
        known = self._ruler.counted
        if not known:
            return min(FIRST_WORDS, wanted)
        if len(known) == 1:
            [(words, tokens)] = known.items()
            half = words + min(FAR_WORDS, int(wanted - tokens) // 2)
            if half >= 2 * words:
                return half
        return self._guess(wanted)

    def learn(self, wanted: int, words: int, tokens: int | None) -> None:
        """What the server counted of a text of so many words that was sent for `wanted` tokens, if it did."""
        if tokens is None or not self.plausible(words, wanted, tokens):
            self._give_up(wanted)
            return
        cut = self._truncates and tokens >= wanted
        if not cut:
            self._note(words, tokens)
        if not cut and self._constant():
            self._give_up(wanted)
        elif cut:
            self._words[wanted] = words
        elif words == 1 and tokens > wanted + max(self._ruler.each, wanted / 100):
            self._least[wanted] = tokens
        elif not self._truncates and not self.off(wanted, tokens) and self._sure(wanted, words):
            self.settle(wanted)

    def settle(self, wanted: int) -> None:
        """The best that is known must do."""
        self._words[wanted] = self._guess(wanted)

    def check(self, wanted: int, tokens: float) -> bool:
        """Whether prompts that were sent for `wanted` tokens, and counted as `tokens` (the mean), are off by more than
        a word or two. What is off by a word is put right from the next prompt on.
        """
        words = self.words(wanted)
        self._counts = True
        if abs(tokens - wanted) > self._ruler.each + 1 and not (self._truncates and tokens >= wanted):
            if self.off(wanted, tokens):  # another model, and most likely another template
                self._ruler = Ruler(self._ruler.each)
            self._note(words, tokens)
            if words == 1 and tokens > wanted + max(self._ruler.each, wanted / 100):
                self._least[wanted] = math.ceil(tokens)
            self.settle(wanted)
        return self.off(wanted, tokens)

    def off(self, wanted: int, tokens: float) -> bool:
        """More than 1 % and more than a word: the first one differs from prompt to prompt."""
        return abs(tokens - wanted) > max(self._ruler.each + SPARE_TOKENS, wanted / 100)

    def plausible(self, words: int, wanted: int, tokens: int) -> bool:
        """A word is at least a token: less is no count, or one of what a cache did not hold."""
        least = min(words, wanted) if self._truncates else words
        return least <= tokens <= words * MOST_OF_A_WORD + MOST_ADDED

    def _guess(self, wanted: int) -> int:
        if not self._counts:
            return wanted
        spare = 1.5 * self._ruler.each + 0.5 if self._truncates else 0
        return self._ruler.words(wanted + spare)

    def _sure(self, wanted: int, words: int) -> bool:
        """From one length alone nobody knows what another word would add."""
        return len(self._ruler.counted) > 1 or self._guess(wanted) == words

    def _note(self, words: int, tokens: float) -> None:
        expected = self._ruler.tokens(words)
        if len(self._ruler.counted) > 1 and abs(tokens - expected) > max(self._ruler.each + SPARE_TOKENS, expected / 4):
            self._ruler = Ruler()  # another server, or another model
        self._ruler.learn(words, tokens)

    def _constant(self) -> bool:
        """Whether it says the same of a long text as of a short one: then that is no count."""
        known = self._ruler.counted
        return len(known) > 1 and max(known) - min(known) > 3 and known[max(known)] <= known[min(known)]

    def _give_up(self, wanted: int) -> None:
        self._counts = False
        self._ruler = Ruler()
        self._words[wanted] = wanted
