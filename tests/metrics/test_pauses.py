"""Pauses in long work, in virtual time."""

from exporter.metrics.pauses import PAUSE_SECONDS, WORK_SECONDS, Pauses


class Time:
    """A clock that moves only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_long_work_pauses_again_and_again_and_short_work_never() -> None:
    time = Time()
    pause = Pauses(lambda: time.now, time.sleep)
    for _ in range(3):
        time.now += WORK_SECONDS / 4
        pause()
    assert time.slept == []
    for _ in range(40):
        time.now += WORK_SECONDS * 0.6
        pause()
    assert time.slept == [PAUSE_SECONDS] * 20


def test_a_pause_does_not_count_as_work() -> None:
    time = Time()
    pause = Pauses(lambda: time.now, lambda seconds: time.sleep(10 * WORK_SECONDS))
    time.now += WORK_SECONDS
    pause()
    pause()
    assert len(time.slept) == 1
