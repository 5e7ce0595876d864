"""The SLO counters against a brute-force count over random observations."""

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from exporter.config.settings import Settings
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, Step, Stream
from exporter.plan.targets import plans

THRESHOLD = 0.2
SIZES = (1, 2, 4)
MEASURES = ("ttft", "inter_token_latency", "time_per_output_token", "request_duration")
SETTINGS = Settings.model_validate(
    {
        "targets": [{"name": "t", "address": "a:1"}, {"name": "other", "address": "a:2"}],
        "workloads": [{"name": "w", "batch_sizes": list(SIZES)}],
        "slos": [
            *({"name": measure, "workload": "w", measure: "200ms"} for measure in MEASURES),
            {"name": "availability", "workload": "w", "availability": True},
            {"name": "only-1", "workload": "w", "batch_sizes": [1], "ttft": "200ms", "targets": ["t"]},
        ],
    }
)
# Multiples of 1/16 s are exact in binary, so the oracle may add and divide them as it likes; 0.2 is put in by hand.
INSTANTS = st.lists(st.sampled_from([0.0, 0.0625, 0.125, 0.1875, 0.2, 0.25, 1.0]), min_size=1, max_size=4)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """One stream for the whole batch, as a shard has it, or one for each request; any outcome."""
    size = draw(st.sampled_from(SIZES))
    outcome = draw(st.sampled_from(Outcome))
    shares = [size] if draw(st.booleans()) else [1] * size
    streams = []
    for requests in shares:
        now, steps = 0.0, []
        for wait in draw(INSTANTS):
            steps.append(Step(now, now + wait, requests))
            now += wait
        ok = outcome is Outcome.OK or (len(shares) > 1 and draw(st.booleans()))
        kept = tuple(steps if ok else steps[: draw(st.integers(0, len(steps)))])
        streams.append(Stream(requests, 8, 0.0, now, kept, Outcome.OK if ok else outcome))
    if outcome is not Outcome.OK and draw(st.booleans()):
        streams = []
    return Observation(Series("t", "w", size), 0.0, 0.0, 9.0, outcome, "X", streams=tuple(streams))


def meets(name: str, stream: Stream) -> bool:
    """Said again in the plainest words, from arrivals alone."""
    arrivals = [step.arrived for step in stream.steps]
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    match name:
        case "ttft" | "only-1":
            return arrivals[0] <= THRESHOLD
        case "inter_token_latency":
            return all(gap <= THRESHOLD for gap in gaps)
        case "time_per_output_token":
            return not gaps or (arrivals[-1] - arrivals[0]) / len(gaps) <= THRESHOLD
        case "request_duration":
            return stream.ended <= THRESHOLD
        case _:
            return True


@given(st.lists(observations(), max_size=12))
def test_the_counters_are_what_counting_every_request_by_hand_gives(seen: list[Observation]) -> None:
    metrics = Metrics(layout(SETTINGS))
    metrics.configure(SETTINGS)
    for plan in plans(SETTINGS).values():
        metrics.announce(plan)
    expected: Counter[tuple[str, str, str]] = Counter()
    for observation in seen:
        metrics.record(observation)
        size = observation.series.batch_size
        for slo in SETTINGS.slos:
            if not observation.outcome.judged or size not in (slo.batch_sizes or SIZES):
                continue
            whole_batch_failed = observation.outcome is not Outcome.OK and len(observation.streams) <= 1
            good = sum(
                stream.requests
                for stream in observation.streams
                if stream.outcome is Outcome.OK and not whole_batch_failed and meets(slo.name, stream)
            )
            expected[slo.name, str(size), "good"] += good
            expected[slo.name, str(size), "bad"] += size - good
    counted = {
        (sample.labels["slo"], sample.labels["batch_size"], sample.labels["verdict"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "tgi_probe_slo_requests_total" and sample.labels["target"] == "t"
    }
    assert counted == {key: expected[key] for key in counted}
    assert set(+expected) <= set(counted)


@given(st.lists(observations(), max_size=8))
def test_the_share_of_good_requests_can_be_read_off_the_histogram_at_the_threshold(seen: list[Observation]) -> None:
    ok = [one for one in seen if one.outcome is Outcome.OK and len(one.streams) == one.series.batch_size]
    metrics = Metrics(layout(SETTINGS))
    metrics.configure(SETTINGS)
    for plan in plans(SETTINGS).values():
        metrics.announce(plan)
    for observation in ok:
        metrics.record(observation)
    below: dict[str, float] = {}
    good: dict[str, float] = {}
    for sample in (sample for metric in metrics.registry.collect() for sample in metric.samples):
        if sample.labels.get("target") != "t":
            continue
        if sample.name == "tgi_probe_time_to_first_token_seconds_bucket" and sample.labels["le"] == "0.2":
            below[sample.labels["batch_size"]] = sample.value
        elif sample.name.endswith("_total") and sample.labels.items() >= {"slo": "ttft", "verdict": "good"}.items():
            good[sample.labels["batch_size"]] = sample.value
    assert below == good
    assert len(below) == len(SIZES)
