"""When requests of a background load are due. Pure: no clock; randomness is an argument.

`constant` is exactly periodic. `poisson` is a Poisson process: gaps from an exponential distribution, independent of
each other and of how long any answer takes.
"""

from collections.abc import Iterator
from random import Random


def constant(rate: float, start: float) -> Iterator[float]:
    """Endless instants, `1 / rate` seconds apart, the first one gap after `start`. Rounding errors do not add up."""
    number = 1
    while True:
        yield start + number / rate
        number += 1


def poisson(rate: float, start: float, random: Random) -> Iterator[float]:
    """Endless instants, on average `rate` per second."""
    at = start
    while True:
        at += random.expovariate(rate)
        yield at
