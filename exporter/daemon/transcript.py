"""One probe as text for a person: what was sent, what came when, how it ended. Pure."""

from collections.abc import Iterator

from exporter.analysis.certainty import UncertainDuration, mean, recorded
from exporter.config.notation import counted
from exporter.config.workload import Workload
from exporter.observation import Observation, Outcome, Stream

SHOWN_STEPS = 20
SHOWN_STREAMS = 4


def transcript(observation: Observation, workload: Workload) -> str:
    """Lines of text; instants in milliseconds since the first request left."""
    return "\n".join(_lines(observation, workload)) + "\n"


def _lines(observation: Observation, workload: Workload) -> Iterator[str]:
    series = observation.series
    yield f"target {series.target}, workload {series.workload}, batch size {series.batch_size}"
    prompt, answer = counted(workload.sequence_length, "prompt token"), counted(workload.decode_length, "token")
    yield f"{prompt} and {answer} to generate for each request"
    yield f"trace {observation.trace_id}"
    yield f"took {_ms(observation.ended - observation.started)}, warm-ups and clearing up included"
    yield ""
    for number, stream in enumerate(observation.streams[:SHOWN_STREAMS]):
        if len(observation.streams) > 1:
            yield f"stream {number}: {stream.outcome} ({stream.code})"
        yield from _steps(stream)
    if len(observation.streams) > SHOWN_STREAMS:
        yield f"… and {counted(len(observation.streams) - SHOWN_STREAMS, 'stream')} more"
    yield ""
    yield f"outcome: {observation.outcome} ({observation.code})"
    if observation.detail:
        yield observation.detail
    if observation.outcome is Outcome.OK:
        yield from _results(observation)


def _steps(stream: Stream) -> Iterator[str]:
    for number, step in enumerate(stream.steps[:SHOWN_STEPS]):
        server = ""
        if step.server is not None and step.server.total is not None:
            server = f", the server says {_ms(step.server.total)}"
        what = "first token" if number == 0 else f"step {number}"
        late = max(step.late, step.asked_late)
        doubt = f" (uncertain by {_ms(late)})" if not UncertainDuration(step.arrived - step.asked, late).certain else ""
        yield (
            f"{(step.arrived - stream.sent) * 1000:10.3f} ms  {what}: {counted(step.tokens, 'token')} after "
            f"{_ms(step.arrived - step.asked)}{doubt}{server}"
        )
    if len(stream.steps) > SHOWN_STEPS:
        yield f"  … and {counted(len(stream.steps) - SHOWN_STEPS, 'step')} more"
    yield f"{(stream.ended - stream.sent) * 1000:10.3f} ms  done"


def _results(observation: Observation) -> Iterator[str]:
    values = recorded(observation)
    first, gaps = mean(values.first), mean(values.gaps)
    if first is not None:
        yield f"time to first token: {_ms(first)}"
    if gaps is not None:
        yield f"inter-token latency: mean {_ms(gaps)}, longest {_ms(max(values.gaps))}"
    for name, rate in (("prefill", values.prefill_rate), ("decode", values.decode_rate)):
        if rate is not None:
            yield f"{name} throughput: {rate:,.1f} tokens/s"
    for count in ("prompt", "generated"):
        if any(getattr(stream, f"{count}_estimated") for stream in observation.streams):
            yield f"{count} tokens are estimated: the target gives no count of them that can be true"
    if values.withheld:
        counts = ", ".join(f"{count} {measure}" for measure, count in sorted(values.withheld.items()))
        yield f"withheld, because tgi-probe was held up and they may be wrong: {counts}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms"
