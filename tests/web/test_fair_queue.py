"""Which request is served next, in virtual time."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from exporter.web.fair_queue import NEW_KEY_SECONDS, REMEMBERED_KEYS, FairQueue
from exporter.web.token_bucket import Bucket

PACE, BURST = 0.02, 5
keys = st.sampled_from(["a", "b", "c", "d"])


class VirtualAdmission:
    """Serves requests as `Admission` does, in virtual time. `seen` has each key that was served, and when."""

    def __init__(self) -> None:
        self.queue: FairQueue[tuple[str, int]] = FairQueue()
        self.pace = Bucket(PACE, BURST)
        self.now = 1000.0
        self.seen: list[tuple[str, float]] = []
        self._number = 0

    def ask(self, key: str) -> None:
        if not self.queue and self.pace.allows(self.now):
            self.queue.served(key, self.now)
            self.seen.append((key, self.now))
        else:
            self._number += 1
            self.queue.add(key, (key, self._number), self.now)

    def turn(self, then: Callable[[str], None] = lambda key: None) -> None:
        self.now += self.pace.reserve(self.now)
        one = self.queue.pop(self.now)
        if one is not None:
            self.seen.append((one[0], self.now))
            then(one[0])


def waited_beside(rude: list[str], seconds: float = 30.0, every: float = 5.0) -> list[float]:
    """How long somebody waits who asks each few seconds, beside some who ask again as soon as they had their turn."""
    admission, waits = VirtualAdmission(), []
    for key in rude:
        admission.ask(key)
    next_ask, asked = admission.now + every / 2, None
    while admission.now < 1000 + seconds:
        if asked is None and admission.now >= next_ask:
            admission.ask("polite")
            asked = admission.now
        admission.turn(then=lambda key: None if key == "polite" else admission.ask(key))
        if asked is not None and admission.seen[-1][0] == "polite":
            waits.append(admission.now - asked)
            next_ask, asked = next_ask + every, None
    return waits


def test_a_polite_client_waits_for_one_turn_only_beside_many_rude_connections_that_stay_open() -> None:
    waits = waited_beside([f"rude {number}" for number in range(128)])
    assert len(waits) >= 5
    assert max(waits) <= PACE + 1e-9


def test_a_polite_client_waits_for_one_turn_only_beside_a_crowd_on_new_connections() -> None:
    assert max(waited_beside(["crowd"] * 128)) <= PACE + 1e-9


@given(st.lists(st.tuples(keys, st.floats(0, 0.1)), max_size=60))
def test_never_more_than_the_burst_and_one_each_pace_are_let_in(asks: list[tuple[str, float]]) -> None:
    admission = VirtualAdmission()
    for key, gap in asks:
        admission.now += gap
        admission.ask(key)
    while admission.queue:
        admission.turn()
    times = sorted(at for _, at in admission.seen)
    assert len(times) == len(asks)
    for first, last in zip(times, times[BURST:], strict=False):
        assert last - first >= PACE - 1e-6


@given(st.lists(keys, min_size=1, max_size=40))
def test_all_who_stand_in_line_have_their_turn_and_each_key_before_any_has_its_third(asks: list[str]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, key in enumerate(asks):
        queue.add(key, number, 10.0)
    order = [queue.pop(11.0 + number) for number in range(len(asks))]
    assert sorted(one for one in order if one is not None) == list(range(len(asks)))
    first = {key: min(at for at, one in enumerate(order) if one is not None and asks[one] == key) for key in asks}
    assert max(first.values()) < len(first)
    assert queue.pop(99.0) is None


def test_those_with_one_key_are_let_in_as_they_came() -> None:
    queue: FairQueue[str] = FairQueue()
    for one in ("first", "second", "third"):
        queue.add("key", one, 1.0)
    assert [queue.pop(2.0) for _ in range(3)] == ["first", "second", "third"]


def test_one_that_may_not_go_yet_holds_back_none_behind_it() -> None:
    queue: FairQueue[str] = FairQueue()
    for one in ("page", "action", "page again"):
        queue.add("key", one, 1.0)
    assert queue.count(lambda item: item == "action") == 1
    assert queue.pop(2.0, lambda item: item == "action") == "action"
    assert [queue.pop(2.0) for _ in range(3)] == ["page", "page again", None]


def test_one_that_was_taken_out_is_not_served() -> None:
    queue: FairQueue[str] = FairQueue()
    for one in ("first", "second"):
        queue.add("key", one, 1.0)
    queue.remove("key", "first")
    assert (len(queue), queue.pop(2.0)) == (1, "second")


def test_strangers_go_before_who_asked_lately_and_after_who_is_known_and_waited_longer() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.served("known", 100.0 - NEW_KEY_SECONDS - 1)
    queue.served("rude", 99.0)
    for key in ("rude", "stranger", "known"):
        queue.add(key, key, 100.0)
    assert [queue.pop(100.1) for _ in range(3)] == ["known", "stranger", "rude"]


def test_only_so_many_keys_are_remembered() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3 * REMEMBERED_KEYS):
        queue.served(number, float(number))
    queue.forget(3 * REMEMBERED_KEYS - 1)
    assert len(queue._served_at) == REMEMBERED_KEYS - 1
