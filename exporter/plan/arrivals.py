"""When requests of a background load are due. Pure: no clock; randomness comes in as an argument.

The names do not lie: `constant` is exactly periodic, `poisson` a Poisson process (gaps drawn from an exponential
distribution, independent of each other and of how long any answer takes).
"""

from collections.abc import Iterator
from random import Random


def constant(rate: float, start: float) -> Iterator[float]:
    """Instants without end, `1 / rate` seconds apart; the first is one gap after `start`. No error adds up."""
    number = 1
    while True:
        yield start + number / rate
        number += 1


def poisson(rate: float, start: float, random: Random) -> Iterator[float]:
    """Instants without end, on average `rate` in a second."""
    at = start
    while True:
        at += random.expovariate(rate)
        yield at
