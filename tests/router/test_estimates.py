"""Where a target gives no count of its tokens that can be true, a gauge says so."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.transcript import transcript
from exporter.metrics import pages
from exporter.metrics.catalogue import Layout
from exporter.metrics.formats import PLAIN_0_0_4
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, Step, Stream
from exporter.plan.targets import Plan
from tests.router.parts import Probing, target, workload
from tests.router.scripted import answer, scripted

ROUTER = Target(name="r", kind="http", address="http://h:1")
SHARD = Target(name="s", kind="shard", address="unix:///s")
PLAN = Plan(ROUTER, (Workload(name="w"), Workload(name="x")), 1.0)
STREAM = Stream(1, 100, 0.0, 2.0, (Step(0.0, 1.0, 1),))


def estimated(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    page = b"".join(pages.page(metrics.registry, PLAIN_0_0_4)).decode()
    return {
        (sample.labels["target"], sample.labels["workload"], sample.labels["count"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "tgi_probe_token_counts_estimated"
    }


def observation(*streams: Stream, workload: str = "w", outcome: Outcome = Outcome.OK) -> Observation:
    return Observation(Series("r", workload, 1), 0.0, 0.0, 2.0, outcome, "OK", streams=streams)


def test_the_gauge_is_there_from_the_start_for_each_target_and_workload() -> None:
    metrics = Metrics(Layout())
    metrics.announce(PLAN)
    metrics.announce(Plan(SHARD, (Workload(name="w"),), 1.0))
    workloads = (("r", "w"), ("r", "x"), ("s", "w"))
    assert estimated(metrics) == {(*pair, count): 0 for pair in workloads for count in ("prompt", "generated")}


def test_it_tells_of_the_newest_successful_probe() -> None:
    metrics = Metrics(Layout())
    metrics.announce(PLAN)
    guessed = replace(STREAM, generated_estimated=True)
    metrics.record(observation(STREAM, guessed))
    metrics.record(observation(replace(STREAM, prompt_estimated=True), workload="x"))
    assert [key for key, value in estimated(metrics).items() if value] == [
        ("r", "w", "generated"),
        ("r", "x", "prompt"),
    ]
    metrics.record(observation(outcome=Outcome.TIMEOUT))
    assert estimated(metrics)["r", "w", "generated"] == 1
    metrics.record(observation(STREAM))
    assert estimated(metrics)["r", "w", "generated"] == 0


def test_it_leaves_with_its_workload_and_its_target() -> None:
    metrics = Metrics(Layout())
    metrics.announce(PLAN)
    metrics.narrow(replace(PLAN, workloads=PLAN.workloads[:1]), PLAN)
    assert {workload for _, workload, _ in estimated(metrics)} == {"w"}
    metrics.forget("r")
    assert estimated(metrics) == {}


@pytest.mark.parametrize(
    ("usage", "marks"),
    [
        ({"prompt_tokens": 32, "completion_tokens": 2}, (False, False)),
        ({"prompt_tokens": 32, "completion_tokens": 0}, (False, True)),
        ({"completion_tokens": 2}, (True, False)),
        (None, (True, True)),
    ],
)
def test_a_probe_carries_it_from_the_answer(usage: dict[str, int] | None, marks: tuple[bool, bool]) -> None:
    chunks = [{"choices": [{"index": 0, "text": text}]} for text in "ab"]
    last: dict[str, object] = {"choices": [], "usage": usage}
    with (
        scripted(lambda _: answer(*chunks, last, "[DONE]")) as server,
        Probing(target("completions", server.authority, None)) as client,
    ):
        [stream] = client.probe(workload(decode_length=8), 1).streams
    assert (stream.prompt_estimated, stream.generated_estimated) == marks
    assert sum(step.tokens for step in stream.steps) == 2


def test_a_transcript_says_it() -> None:
    said = transcript(observation(replace(STREAM, generated_estimated=True)), Workload(name="w"))
    assert "generated tokens are estimated: the target gives no count of them that can be true" in said
    assert "prompt tokens are estimated" not in said
