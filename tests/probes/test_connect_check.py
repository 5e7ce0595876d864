"""`check --connect`: every kind of server is said right, and a wrong target gets the mend that puts it right."""

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from exporter.cli import main
from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.observation import Failure, Outcome
from exporter.plan.targets import plans
from exporter.probes.connect_check import Examination, run
from exporter.probes.interface import Result
from exporter.probes.quarantine import Death, Quarantine
from exporter.probes.shard.lock import ShardLock
from exporter.probes.shard.prober import ShardProber
from exporter.simulator import Shard
from exporter.simulator.roofline import Roofline
from exporter.simulator.router import Router
from exporter.simulator.router_options import RouterConfig, ServerTls
from tests.processes import free_port, wait_until
from tests.simulator.caller import fast
from tests.simulator.supervised import supervised
from tests.web.certificates import Authority

FAST = RouterConfig(roofline=replace(Roofline(), speed=20.0))
WORKLOADS = [{"name": "w", "sequence_length": 32, "decode_length": 6}]


class OpenAi(BaseHTTPRequestHandler):
    """A server of one OpenAI form alone, whose chat template adds tokens to each prompt."""

    protocol_version = "HTTP/1.1"
    added = 40
    counts = True

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self._say(200, {"object": "list", "data": [{"id": "a"}, {"id": "b"}]})
        return self._say(405 if self.path == "/v1/chat/completions" else 404, {"detail": "no"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            return self._say(404, {"detail": "Not Found"})
        if asked["model"] not in ("a", "b"):
            return self._say(404, {"error": {"message": f"The model {asked['model']} does not exist.", "code": 404}})
        prompt = len(asked["messages"][0]["content"].split()) + self.added
        usage = {"prompt_tokens": prompt, "completion_tokens": asked["max_tokens"]}
        events: list[Any] = [{"choices": [{"delta": {"content": "x "}}]}] * asked["max_tokens"]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        events += [{"choices": [], "usage": usage}] if self.counts else []
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return self._say(200, body, "text/event-stream")

    def _say(self, status: int, what: object, kind: str = "application/json") -> None:
        body = (what if isinstance(what, str) else json.dumps(what)).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def servers(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The address of every sort of server, without a scheme."""
    folder = tmp_path_factory.mktemp("sockets")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(folder / "stale"))
    pair = authority.sign("router.test", "IP:127.0.0.1")
    found = {
        "stale": f"unix://{folder}/stale",
        "nobody": f"127.0.0.1:{free_port()}",
        "ca": str(authority.own.certificate),
    }
    with (
        Shard(fast()) as shard,
        Shard(fast(listen=f"unix://{folder}/ranks", ranks=2)) as ranks,
        Shard(fast(attention="paged")) as paged,
        Router(FAST) as router,
        Router(replace(FAST, token="s3cret")) as keyed,
        Router(replace(FAST, tls=ServerTls(pair.certificate, pair.key))) as secure,
        ThreadingHTTPServer(("127.0.0.1", 0), OpenAi) as openai,
    ):
        openai.daemon_threads = True
        thread = threading.Thread(target=openai.serve_forever)
        thread.start()
        found |= {"shard": shard.addresses[0], "ranks": ranks.addresses[0], "paged": paged.addresses[0]}
        found |= {"http": str(router.http), "grpc": str(router.grpc), "keyed": str(keyed.http)}
        found |= {"https": str(secure.http), "grpcs": str(secure.grpc), "openai": f"127.0.0.1:{openai.server_port}"}
        yield found
        openai.shutdown()
        thread.join()


def report(target: Mapping[str, Any], workloads: list[dict[str, Any]] = WORKLOADS) -> tuple[int, list[str]]:
    lines: list[str] = []
    code = run(Settings.model_validate({"targets": [{"name": "t", **target}], "workloads": workloads}), lines.append)
    return code, [" ".join(line.split()) for line in lines]


def named(value: object) -> str:
    """For the tests' names."""
    return " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)[:40]


def filled(keys: Mapping[str, Any], servers: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a target, with the names of servers in their places."""
    text = json.dumps(keys)
    for name, address in servers.items():
        text = text.replace(f"<{name}>", address)
    found: dict[str, Any] = json.loads(text)
    return found


RIGHT: list[tuple[dict[str, Any], str]] = [
    ({"address": "<shard>"}, "reachable: generate.v3, dtype torch.float16, 1 rank, padded"),
    ({"address": "<ranks>", "kv_cache": "exclusive"}, "2 ranks, padded"),
    ({"address": "<paged>", "kv_cache": "exclusive", "max_batch_tokens": 9999}, "1 rank, paged, block size 1"),
    ({"address": "<grpc>", "kind": "fmaas"}, "reachable: fmaas, max_total_tokens 4096"),
    ({"address": "<grpcs>", "kind": "fmaas", "tls": {"ca_file": "<ca>"}}, "reachable: fmaas"),
    ({"address": "http://<http>", "kind": "http"}, "reachable: http/tgi, model embedded/llama-3-8b"),
    ({"address": "http://<http>", "kind": "http", "api": "chat"}, "reachable: http/chat, model embedded/llama-3-8b"),
    ({"address": "http://<http>", "kind": "http", "api": "completions"}, "reachable: http/completions"),
    ({"address": "https://<https>", "kind": "http", "tls": {"ca_file": "<ca>"}}, "reachable: http/tgi"),
    ({"address": "http://<keyed>", "kind": "http", "bearer_token_env": "RIGHT_TOKEN"}, "RIGHT_TOKEN is accepted"),
    ({"address": "http://<http>", "kind": "http", "yield_to_users": True}, "the queue can be read; users do not wait"),
]


@pytest.mark.parametrize(("keys", "said"), RIGHT, ids=named)
def test_a_right_target_is_said_to_be_right(
    keys: dict[str, Any], said: str, servers: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGHT_TOKEN", "s3cret")
    code, lines = report(filled(keys, servers))
    assert (code, lines[-1]) == (0, "1 target: all well")
    assert any(said in line for line in lines)
    assert any("ok workload w: 6 tokens generated, the first after" in line for line in lines)
    assert any("ok prompt: 32 tokens, wanted 32" in line for line in lines)


HTTP = {"kind": "http", "address": "http://<http>"}
TGI, OPENAI = "this is a TGI router: ", "this is a server of the OpenAI forms (such as vLLM or SGLang): "
# A wrong target, the mend that is proposed, and the keys that it names: with them the target is right.
WRONG: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"address": "<http>"}, f"{TGI}set kind: http; set address: http://<http>", HTTP),
    ({"address": "<grpc>"}, "this is a TGIS router (fmaas): set kind: fmaas", {"kind": "fmaas"}),
    ({"address": "<https>"}, f"{TGI}set kind: http; set address: https://<https>", {}),
    ({"address": "<grpcs>"}, "this is a TGIS router (fmaas): set kind: fmaas; set tls: {}", {}),
    ({"address": "<shard>", "kind": "fmaas"}, "this is a shard of TGI: set kind: shard", {"kind": "shard"}),
    ({"address": "<http>", "kind": "fmaas"}, f"{TGI}set kind: http; set address: http://<http>", HTTP),
    (
        {"address": "<grpcs>", "kind": "fmaas"},
        "this is a TGIS router (fmaas): set tls: {}",
        {"tls": {"ca_file": "<ca>"}},
    ),
    ({"address": "<grpc>", "kind": "fmaas", "tls": {}}, "this is a TGIS router (fmaas): remove tls", {"tls": None}),
    (
        {"address": "http://<shard>", "kind": "http"},
        "this is a shard of TGI: set kind: shard; set address: <shard>",
        {"kind": "shard", "address": "<shard>"},
    ),
    (
        {"address": "http://<grpc>", "kind": "http"},
        "this is a TGIS router (fmaas): set kind: fmaas; set address: <grpc>",
        {"kind": "fmaas", "address": "<grpc>"},
    ),
    ({"address": "https://<http>", "kind": "http"}, f"{TGI}set address: http://<http>", HTTP),
    (
        {"address": "http://<https>", "kind": "http"},
        f"{TGI}set address: https://<https>",
        {"address": "https://<https>", "tls": {"ca_file": "<ca>"}},
    ),
    (
        {"address": "http://<http>/v1", "kind": "http", "api": "chat"},
        f"{TGI}set address: http://<http> (leave /v1 out)",
        HTTP,
    ),
    (
        {"address": "http://<http>/v1/chat/completions", "kind": "http", "api": "chat"},
        f"{TGI}set address: http://<http> (leave /v1/chat/completions out)",
        HTTP,
    ),
    ({"address": "http://<http>/llm", "kind": "http"}, f"{TGI}set address: http://<http> (leave /llm out)", HTTP),
    (
        {"address": "http://<openai>", "kind": "http", "model": "a"},
        f"{OPENAI}set api: chat",
        {"api": "chat"},
    ),
    (
        {"address": "http://<openai>/v1", "kind": "http", "api": "completions"},
        f"{OPENAI}set address: http://<openai> (leave /v1 out); set api: chat",
        {"api": "chat", "address": "http://<openai>"},
    ),
    (
        {"address": "http://<openai>", "kind": "http", "api": "chat", "model": "c"},
        "set model: one of a, b",
        {"model": "b"},
    ),
    (
        {"address": "http://<keyed>", "kind": "http"},
        "the server wants a token: set bearer_token_env or bearer_token_file",
        {"bearer_token_env": "RIGHT_TOKEN"},
    ),
    (
        {"address": "http://<keyed>", "kind": "http", "bearer_token_env": "OTHER_TOKEN"},
        "the server does not accept the token of bearer_token_env: OTHER_TOKEN; put the right one there",
        {"bearer_token_env": "RIGHT_TOKEN"},
    ),
    (
        {"address": "http://<http>", "kind": "http", "yield_to_users": True, "metrics_url": "http://<http>/info"},
        "set metrics_url to the page with the router's own metrics, or remove yield_to_users",
        {"metrics_url": "http://<http>/metrics"},
    ),
]
LONG = [{"name": "w", "sequence_length": 64, "decode_length": 6}]


@pytest.mark.parametrize(("keys", "mend", "mended"), WRONG, ids=named)
def test_a_wrong_target_is_told_the_mend_which_puts_it_right(
    keys: dict[str, Any],
    mend: str,
    mended: dict[str, Any],
    servers: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RIGHT_TOKEN", "s3cret")
    monkeypatch.setenv("OTHER_TOKEN", "0ther")
    code, lines = report(filled(keys, servers), LONG)
    assert (code, lines[-1]) == (1, "1 target: 1 with a problem")
    assert f"mend {filled({'mend': mend}, servers)['mend']}" in lines
    if mended:
        both = {key: value for key, value in {**keys, **mended}.items() if value is not None}
        if both["kind"] == "shard":
            both = {key: both[key] for key in ("kind", "address")}
        assert report(filled(both, servers), LONG)[0] == 0


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"address": "<stale>"}, "nobody listens on this socket"),
        ({"address": "<stale>", "kind": "fmaas"}, "nobody listens on this socket"),
        ({"address": "<nobody>"}, "nothing listens there: is the server up, and the port right?"),
        (
            {"address": "http://<nobody>", "kind": "http"},
            "nothing listens there: is the server up, and the port right?",
        ),
        ({"address": "unix:///no/such/socket"}, "no such socket"),
        ({"address": "<paged>"}, "nothing was sent: this shard keeps a paged KV cache"),
        ({"address": "<ranks>"}, "nothing was sent: target t computes on 2 ranks"),
        (
            {"address": "http://<http>", "kind": "http", "bearer_token_env": "NOT_SET"},
            "the variable NOT_SET is not set",
        ),
        ({"address": "<shard>", "max_total_tokens": 10}, "no workload that could be sent is for this target"),
        ({"address": "https://<https>", "kind": "http"}, "TLS: "),
        ({"address": "<grpcs>", "kind": "fmaas", "tls": {"ca_file": "/none"}}, "tls.ca_file: /none cannot be read"),
    ],
    ids=named,
)
def test_what_no_other_configuration_would_mend_is_told_as_it_is(
    keys: dict[str, Any], problem: str, servers: Mapping[str, str]
) -> None:
    code, lines = report(filled(keys, servers))
    assert code == 1
    assert any(line.startswith("problem ") and problem in line for line in lines)


def test_a_paged_shard_without_consent_and_one_of_several_ranks_are_sent_no_request() -> None:
    with Shard(fast(attention="paged")) as paged, Shard(fast()) as padded:
        assert report({"address": paged.addresses[0]})[0] == 1
        assert "Prefill" not in paged.state()["ranks"][0]["calls"]
        assert report({"address": padded.addresses[0]})[0] == 0
        assert padded.state()["ranks"][0]["calls"]["Prefill"] <= 2  # one to learn how many tokens our words have


def test_a_shard_that_another_prober_has_is_sent_nothing_and_is_no_problem(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard")) as shard:
        lock = ShardLock(shard.addresses[0])
        lock.take()
        code, lines = report({"address": shard.addresses[0]})
        lock.release()
        assert code == 0
        assert any(line.startswith("ok nothing was sent: ") for line in lines)
        assert "Prefill" not in shard.state()["ranks"][0]["calls"]


def test_a_server_that_counts_no_tokens_is_told_so(monkeypatch: pytest.MonkeyPatch, servers: Mapping[str, str]) -> None:
    monkeypatch.setattr(OpenAi, "counts", False)
    target = {"address": f"http://{servers['openai']}", "kind": "http", "api": "chat", "model": "a"}
    code, lines = report(target)
    assert code == 0
    assert sum("(estimated: the server counts none)" in line for line in lines) == 2


def test_a_prompt_that_is_too_short_for_the_chat_template_is_a_problem(servers: Mapping[str, str]) -> None:
    target = {"address": f"http://{servers['openai']}", "kind": "http", "api": "chat", "model": "a"}
    code, lines = report(target)
    assert code == 1
    assert any("sequence_length" in line for line in lines if line.startswith("problem refused"))


def test_the_command_says_all_targets_by_name_and_ends_with_1_for_a_problem_and_2_for_a_bad_file(
    servers: Mapping[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    text = "targets: [{name: good, kind: http, address: 'http://%s'}, {name: bad, address: '%s'}]\nworkloads: [%s]\n"
    workload = "{name: w, sequence_length: 32}"
    file.write_text(text % (servers["http"], servers["nobody"], workload))
    assert main(["check", "--connect", "--config", str(file)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("ok: 2 targets, 1 workload, 0 SLOs\n")
    assert "\ngood: kind http, api tgi, http://" in said
    assert "\nbad: kind shard, " in said
    assert said.endswith("\n2 targets: 1 with a problem\n")
    file.write_text(text % (servers["http"], "nowhere", workload))
    assert main(["check", "--connect", "--config", str(file)]) == 2
    assert "kind http" not in capsys.readouterr().out


@pytest.mark.parametrize("limit", [80, 100_000])
def test_a_shard_is_sent_nothing_that_does_not_fit_or_that_ended_it_before(tmp_path: Path, limit: int) -> None:
    config = fast(attention="paged", block_size=64, max_batch_tokens=64, listen=f"unix://{tmp_path}/shard")
    target = Target.model_validate(
        {"name": "t", "address": f"{config.listen}-0", "kv_cache": "exclusive", "max_batch_tokens": limit}
    )
    if limit == 100_000:  # the limit is wrong, and the file beside the socket says what came of it
        lock = ShardLock(target.address)
        lock.take()
        lock.quarantine = Quarantine(target, Death("w", 1, 64, 1.0, "Socket closed")).as_data({})
        lock.write((), ())
        lock.release()
    with Shard(config) as shard:
        code, lines = report(
            target.model_dump(exclude={"name"}, exclude_unset=True),
            [{"name": "w", "sequence_length": 60, "decode_length": 8, "batch_sizes": [1]}],
        )
        assert code == 1
        assert any("the server ended at" in line or "needs 2 blocks of KV cache" in line for line in lines), lines
        assert "Prefill" not in shard.state()["ranks"][0]["calls"]


def test_what_ended_a_shard_is_written_down_for_the_daemon(tmp_path: Path) -> None:
    config = fast(attention="paged", block_size=64, max_batch_tokens=64, listen=f"unix://{tmp_path}/shard")
    target = {"address": f"{config.listen}-0", "kv_cache": "exclusive", "max_batch_tokens": 100_000}
    workload = {"name": "w", "sequence_length": 60, "decode_length": 8, "batch_sizes": [1]}
    with supervised(config) as lives:
        code, lines = report(target, [workload])
        assert code == 1
        assert any(line.startswith("problem the server ended at ") for line in lines), lines
        wait_until(lambda: len(lives) == 2, "the server is back")
        code, lines = report(target, [workload])
        assert code == 1
        assert any(line.startswith("problem the server ended at ") for line in lines), lines
        assert len(lives) == 2
        assert "Prefill" not in lives[-1].state()["ranks"][0]["calls"]


class HeldUp(ShardProber):
    """Of the first answers it is not known when they came."""

    disturbed = 0
    raising = False

    def probe(self, *given: Any, **more: Any) -> Result:
        result = super().probe(*given, **more)
        if not self.disturbed:
            return result
        self.disturbed -= 1
        if self.raising:
            raise Failure(Outcome.DISTURBED, "OK", "this process was held up")
        return replace(result, outcome=Outcome.DISTURBED, detail="this process was held up")


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize(("disturbed", "kinds"), [(3, ["ok", "ok", "ok"]), (10**6, ["ok", "ok"])])
def test_that_this_machine_is_busy_is_no_problem_of_the_target(raising: bool, disturbed: int, kinds: list[str]) -> None:
    with Shard(fast()) as shard:
        settings = Settings.model_validate(
            {"targets": [{"name": "t", "address": shard.addresses[0]}], "workloads": WORKLOADS}
        )
        [plan] = plans(settings).values()
        prober = HeldUp(plan.target)
        prober.disturbed, prober.raising = disturbed, raising
        found = list(Examination(plan, prober, Quarantine(plan.target)).findings())
        assert [finding.kind for finding in found] == kinds, found
        assert ("this machine is too busy: this process was held up" in found[-1].text) == (disturbed > 3)
        prober.close()
