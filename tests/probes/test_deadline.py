"""A timeout is told with its key and value, how far the answer came, and what would help."""

import pytest

from exporter.config.secrets import Secret
from exporter.config.target import Api
from exporter.config.workload import Workload
from exporter.pb import fmaas_pb2
from exporter.probes.deadline import out_of_time
from exporter.probes.router.fmaas_protocol import GenerationReader
from exporter.probes.router.http_protocol import EventStreamReader
from exporter.wire.message_framing import grpc_message


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (0, "before the first token; set a longer timeout, shorter prompts or smaller batch_sizes"),
        (1, "after 1 of 64 tokens, which take about 1h4m; set a longer timeout or a shorter decode_length"),
        (12, "after 12 of 64 tokens, which take about 5m20s; set a longer timeout or a shorter decode_length"),
        (65, "after 65 tokens, though 64 tokens were asked for; the server does not end its answer"),
    ],
)
def test_a_timeout_is_told_with_its_key_and_value_and_how_far_the_answer_came(tokens: int, said: str) -> None:
    workload = Workload.model_validate({"name": "chat", "decode_length": 64, "timeout": "60s"})
    assert out_of_time(workload, tokens) == f"workload chat: timeout 1m is over {said}"


def test_a_server_that_hangs_after_some_tokens_is_not_answered_with_a_longer_timeout() -> None:
    workload = Workload.model_validate({"name": "chat", "decode_length": 64, "timeout": "5s"})
    said = "workload chat: timeout 5s is over: no token for 4.95 s after 6 of 64 tokens; the server hangs"
    assert out_of_time(workload, 6, 4.951) == said


TOKENS: dict[Api, str] = {
    "tgi": '{"token": {"id": 1, "text": "a"}, "generated_text": null}',
    "completions": '{"choices": [{"text": "a"}]}',
    "chat": '{"choices": [{"delta": {"content": "a"}}]}',
}


@pytest.mark.parametrize("api", TOKENS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_tokens_of_an_unfinished_event_stream_are_counted(api: Api, count: int) -> None:
    answer = EventStreamReader(api, Secret(""))
    answer.head(200, {"content-type": "text/event-stream"})
    answer.body(1.0, f"data: {TOKENS[api]}\n\n".encode() * count + b'data: {"choi')
    assert answer.tokens_so_far() == count


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_tokens_of_an_unfinished_grpc_stream_are_counted(count: int) -> None:
    answer = GenerationReader()
    answer.head(200, {"content-type": "application/grpc"})
    for number in range(count + 1):
        message = fmaas_pb2.GenerationResponse(generated_token_count=number)
        answer.body(1.0, grpc_message(message.SerializeToString()))
    assert answer.tokens_so_far() == count
