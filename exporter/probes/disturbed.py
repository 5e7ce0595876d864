"""Marks what was measured while this process was held up."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from exporter.analysis import certainty
from exporter.observation import Outcome, Step, Stream
from exporter.probes.interface import Result
from exporter.wire.delays import DelayWatch, Gap


def mark_disturbed(result: Result, watch: DelayWatch) -> Result:
    """The result; `disturbed`, with the reason, where no request has a certain instant of its first token.

    `watch` was made before the first request was sent.
    """
    gaps = watch.machine_stops()
    if gaps:
        result = replace(result, streams=tuple(after_stops(stream, gaps) for stream in result.streams))
    late = certainty.disturbed(result.streams)
    if result.outcome is not Outcome.OK or not late:
        return result
    detail = f"when the first token came is uncertain by {late * 1000:.0f} ms: {watch.held_up()}"
    return replace(result, outcome=Outcome.DISTURBED, detail=detail)


def after_stops(stream: Stream, gaps: Sequence[Gap]) -> Stream:
    """The stream with what stops of the whole machine add: the kernel, too, stamps packets late then."""

    def late(step: Step) -> float:
        return max([step.late, *(step.arrived - gap.since for gap in gaps if gap.since < step.arrived <= gap.until)])

    steps = [replace(step, late=late(step)) for step in stream.steps]
    for number, (before, step) in enumerate(pairwise(steps), start=1):
        if step.asked == before.arrived:
            steps[number] = replace(step, asked_late=max(step.asked_late, before.late))
    return replace(stream, steps=tuple(steps))
