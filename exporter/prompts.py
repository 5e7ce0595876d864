"""Texts of a wanted length in tokens, which no prefix cache has seen. Pure; randomness comes in as an argument.

The length of a text in tokens is only known to the server. These are short words that nearly every tokenizer has as
one token, so a first guess is close; then `Ruler` learns from what the server counts. Prompts of one length are the
same words in another order behind another first word, so that they stay equally long where some words are more than
one token.
"""

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


class Prompts:
    """Texts that differ from their very first word on, for as long as there are words: hundreds in a row.

    `hit` repeats one text for ever, to measure what a prefix cache has kept.
    """

    def __init__(self, random: Random, hit: bool = False) -> None:
        self._random = random
        self._order = random.sample(WORDS, len(WORDS))
        self._turn = 0
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
    _counted: dict[int, float] = field(default_factory=dict)

    def words(self, tokens: int) -> int:
        """At least one: a prompt cannot be shorter."""
        return max(1, round((tokens - self.beside) / self.each))

    def learn(self, words: int, tokens: float) -> None:
        """`words` were counted as `tokens` (the mean over a batch). Two lengths tell both unknowns, one the sum."""
        self._counted[words] = tokens
        other = max(self._counted, key=lambda known: (abs(known - words), known))
        span = words - other
        # Too close together, the chance in the words would pass for a slope.
        if abs(span) >= max(8, words // 4):
            self.each = max(0.1, (tokens - self._counted[other]) / span)
        self.beside = tokens - words * self.each
        if len(self._counted) > 16:
            self._counted.pop(next(iter(self._counted)))


def off(tokens: float, wanted: int) -> bool:
    """Whether a counted length is further than 1 % from the wanted one (a short one: than half a token)."""
    return abs(tokens - wanted) > max(0.5, wanted / 100)
