"""Our fmaas client against a server of others: grpcio's, with the generated code of vllm-tgis-adapter."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.observation import Outcome
from tests.processes import running, wait_until
from tests.real_parts import lacking
from tests.router.parts import Probing, target, workload
from tests.simulator.router import adapter_peer


@pytest.fixture
def decoded(tmp_path: Path) -> Path:
    """Where the peer writes down what it understood."""
    return tmp_path / "decoded.jsonl"


@pytest.fixture
def address(decoded: Path) -> Iterator[str]:
    """The peer's. Where the adapter is missing the test is skipped; under CI it fails."""
    if not (adapter_peer.PEERS / "vllm_tgis_adapter").exists():
        lack = f"vllm-tgis-adapter is not in {adapter_peer.PEERS}; `make venv` puts it there"
        lacking(lack)
    with running((sys.executable, str(adapter_peer.__file__), "serve", str(decoded))) as process:
        wait_until(lambda: process.stdout.strip(), "the peer is up", process)
        yield f"127.0.0.1:{process.stdout.strip()}"


def test_a_server_of_others_understands_us_and_we_understand_it(address: str, decoded: Path) -> None:
    with Probing(target("fmaas", None, address, model_id="llama")) as client:
        facts = client.prober.connect(5.0)
        result = client.probe(workload(sequence_length=7, decode_length=3), 4)
    assert (facts.model, facts.max_total_tokens) == ("llama", 4096)
    assert result.outcome is Outcome.OK, result.detail
    for stream in result.streams:
        assert stream.prompt_tokens == 7
        assert sum(step.tokens for step in stream.steps) == 3
        assert stream.steps[0].tokens >= 2  # both of the first message, and the third where it came along with it
    requests = [json.loads(line) for line in decoded.read_text().splitlines()]
    assert len(requests) == 4
    assert sorted(request["request"]["text"] for request in requests) == sorted(client.prompts)
    for request in requests:
        assert request["model_id"] == "llama"
        assert request["params"]["stopping"] == {"max_new_tokens": 3, "min_new_tokens": 3}
        assert "method" not in request["params"]  # greedy is the default
