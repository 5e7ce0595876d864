"""The wire contract held by others: the generated code of vllm-tgis-adapter and OpenAI's own client."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from exporter.simulator.batcher import AdmissionLimits
from exporter.simulator.router import Router
from tests.real_parts import lacking
from tests.simulator.router import adapter_peer
from tests.simulator.router.callers import PROMPT, fast, slow

USER: ChatCompletionUserMessageParam = {"role": "user", "content": PROMPT}


@pytest.fixture
def peer() -> Path:
    """The file of the adapter's client. Where the adapter is missing the test is skipped; under CI it fails."""
    if not (adapter_peer.PEERS / "vllm_tgis_adapter").exists():
        lack = f"vllm-tgis-adapter is not in {adapter_peer.PEERS}; `make venv` puts it there"
        lacking(lack)
    return Path(adapter_peer.__file__)


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(fast()) as router:
        yield router


@pytest.fixture
def client(router: Router) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{router.http}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("server", ["h2", "library"])
def test_the_adapters_generated_code_reads_all_that_the_router_says(peer: Path, server: str) -> None:
    with Router(fast(grpc_server=server)) as router:
        ran = subprocess.run(
            [sys.executable, str(peer), "call", str(router.grpc)], capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        answers = json.loads(ran.stdout)
        assert [entry.prompt_tokens for entry in router.record()] == [3, 3, 3]
    early, *stream = answers["stream"]
    assert early == {"input_token_count": 3}
    assert [message["generated_token_count"] for message in stream] == [1, 2, 3, 4]
    assert stream[-1]["stop_reason"] == "MAX_TOKENS"
    assert [message["tokens"][0]["text"] for message in stream] == [message["text"] for message in stream]
    assert [message["generated_token_count"] for message in answers["batch"]["responses"]] == [4, 4]
    assert answers["tokens"]["responses"] == [
        {
            "token_count": 4,
            "tokens": ["<s>", "a", "rive", "r"],
            "offsets": [{}, {"end": 1}, {"start": 2, "end": 6}, {"start": 6, "end": 7}],
        }
    ]
    assert answers["info"] == {"max_sequence_length": 4096, "max_new_tokens": 4095}


def test_openais_client_reads_the_chat_stream_and_its_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="any", messages=[USER], max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert said[0] == ""
    assert len([piece for piece in said if piece]) == 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (9, 5)


def test_openais_client_reads_the_completion_stream(client: openai.OpenAI, router: Router) -> None:
    stream = client.completions.create(
        model="any", prompt=PROMPT, max_tokens=5, stream=True, extra_headers={"x-request-id": "mine"}
    )
    assert len([chunk.choices[0].text for chunk in stream]) == 5
    [entry] = router.record()
    assert (entry.correlation, len(entry.token_ns)) == ("mine", 5)


def test_openais_client_reads_whole_answers_and_the_model(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="any", messages=[USER], max_tokens=3)
    completion = client.completions.create(model="any", prompt=PROMPT, max_tokens=3)
    assert chat.choices[0].message.content
    assert completion.choices[0].text
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3
    assert [model.id for model in client.models.list()] == ["embedded/llama-3-8b"]


def test_openais_client_knows_a_full_router_a_wrong_token_and_a_mistake() -> None:
    config = {"token": "secret", "stream_errors": "status", "limits": AdmissionLimits(max_concurrent_requests=1)}
    with slow(grpc=None, **config) as router:
        place = f"http://{router.http}/v1"
        with openai.OpenAI(base_url=place, api_key="secret", max_retries=0) as client:
            with pytest.raises(openai.UnprocessableEntityError):
                client.completions.create(model="any", prompt=PROMPT, max_tokens=0)
            running = client.completions.create(model="any", prompt=PROMPT, max_tokens=50, stream=True)
            with pytest.raises(openai.RateLimitError) as refused:
                client.completions.create(model="any", prompt=PROMPT, stream=True)
            running.close()
            assert refused.value.response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        with (
            openai.OpenAI(base_url=place, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.completions.create(model="any", prompt=PROMPT)
