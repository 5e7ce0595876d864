"""Objectives: each request is good or bad exactly once, against a judge that looks at every wait by itself."""

from hypothesis import given
from hypothesis import strategies as st

from exporter.analysis import slo
from exporter.config.settings import Settings
from exporter.config.slo import Slo
from exporter.observation import Observation, Outcome, Series, Step, Stream

WAITS = st.lists(st.integers(1, 40).map(lambda ticks: ticks / 8), min_size=1, max_size=6)  # eighths: exact sums
THRESHOLDS = st.integers(1, 40).map(lambda ticks: f"{ticks * 125}ms")


def stream(waits: list[float], requests: int, outcome: Outcome = Outcome.OK) -> Stream:
    now, steps = 0.0, []
    for wait in waits:
        steps.append(Step(now, now + wait, requests))
        now += wait
    return Stream(requests, requests, 0.0, now, tuple(steps), outcome)


def observation(outcome: Outcome, size: int, *streams: Stream) -> Observation:
    return Observation(Series("t", "w", size), 0.0, 0.0, 0.0, outcome, "OK", streams=streams)


def objective(**measure: object) -> Slo:
    return Slo.model_validate({"name": "s", "workload": "w"} | measure)


@given(WAITS, st.integers(1, 8), THRESHOLDS)
def test_a_batch_is_judged_by_each_of_its_waits(waits: list[float], size: int, text: str) -> None:
    seen = observation(Outcome.OK, size, stream(waits, size))
    limit = float(text.removesuffix("ms")) / 1000
    expected = {
        "ttft": waits[0] <= limit,
        "inter_token_latency": all(wait <= limit for wait in waits[1:]),
        "time_per_output_token": len(waits) == 1 or sum(waits[1:]) / (len(waits) - 1) <= limit,
        "request_duration": sum(waits) <= limit,
    }
    for measure, good in expected.items():
        verdicts = slo.judge(objective(**{measure: text}), seen)
        assert (verdicts.good, verdicts.bad) == ((size, 0) if good else (0, size)), measure
    assert slo.judge(objective(availability=True), seen) == slo.Verdicts(size, 0)


@given(st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.OK]), st.integers(1, 8), WAITS)
def test_a_failed_batch_is_bad_whatever_arrived_and_one_that_says_nothing_of_the_server_is_not_judged(
    outcome: Outcome, size: int, waits: list[float]
) -> None:
    for streams in ((), (stream(waits, size),)):
        verdicts = slo.judge(objective(ttft="1h"), observation(outcome, size, *streams))
        assert verdicts == (slo.Verdicts(0, size) if outcome.judged else slo.Verdicts(0, 0))


@given(st.lists(st.tuples(WAITS, st.booleans()), min_size=2, max_size=8))
def test_with_a_stream_for_each_request_each_has_its_own_verdict(requests: list[tuple[list[float], bool]]) -> None:
    streams = [stream(waits, 1, Outcome.OK if ok else Outcome.TIMEOUT) for waits, ok in requests]
    whole = Outcome.OK if all(ok for _, ok in requests) else Outcome.TIMEOUT
    verdicts = slo.judge(objective(ttft="2s"), observation(whole, len(requests), *streams))
    good = sum(ok and waits[0] <= 2 for waits, ok in requests)
    assert (verdicts.good, verdicts.bad) == (good, len(requests) - good)


def test_an_objective_judges_the_series_it_names_and_no_other() -> None:
    settings = Settings.model_validate(
        {
            "targets": [{"name": name, "address": f"{name}:1"} for name in "abc"],
            "workloads": [
                {"name": "w", "batch_sizes": [1, 2, 4], "targets": ["a", "b"]},
                {"name": "v", "batch_sizes": [8]},
            ],
            "slos": [
                {"name": "all", "workload": "w", "ttft": "1s"},
                {"name": "some", "workload": "w", "ttft": "2s", "batch_sizes": [2], "targets": ["b", "c"]},
                {"name": "up", "workload": "v", "availability": True},
            ],
        }
    )
    every, some, up = (list(slo.series_of(each, settings)) for each in settings.slos)
    assert every == [Series(name, "w", size) for name in "ab" for size in (1, 2, 4)]
    assert some == [Series("b", "w", 2)]
    assert up == [Series(name, "v", 8) for name in "abc"]
    assert slo.thresholds(settings) == {"ttft": (1.0, 2.0)}
