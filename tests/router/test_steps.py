"""The steps that the arrivals of a stream make."""

from exporter.observation import Step
from exporter.probes.router.token_counts import steps


def test_counts_so_far_become_steps_and_an_arrival_without_a_token_is_part_of_the_next_wait() -> None:
    # Before prefill, first token, nothing new, three at once, nothing at the end.
    assert steps(1.0, [(1.1, 0), (1.5, 1), (1.6, 1), (1.8, 4), (1.9, 4)]) == (Step(1.0, 1.5, 1), Step(1.5, 1.8, 3))


def test_tokens_that_came_together_are_one_step() -> None:
    assert steps(1.0, [(2.0, 1), (2.0, 2), (3.0, 3), (3.0, 4)]) == (Step(1.0, 2.0, 2), Step(2.0, 3.0, 2))
