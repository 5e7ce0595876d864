"""`tgi-probe slo` against a real Prometheus, and against what is none."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from exporter.alerting.prometheus_query import PrometheusSample
from exporter.alerting.slo_report import JUDGED, NOW, RECORDED, as_json, explain_no_data, slo_statuses, table
from exporter.cli import main
from tests.alerting.pager import inbox_listening
from tests.processes import PATIENCE, TGI_PROBE, free_port, running, wait_until
from tests.prometheus_server import PrometheusServer, prometheus_scraping

NAMES = ("slo:objective:ratio", "slo:time_period:days", "slo:threshold:seconds")


def recorded(slo: str, target: str, values: Sequence[float], **labels: str) -> Iterator[PrometheusSample]:
    """The recordings of one SLO: objective, period, threshold, then its period's burn and that of 5m, when given."""
    for name, value in zip(NAMES, values, strict=False):
        yield PrometheusSample({"__name__": name, "slo": slo, "target": target}, value)
    own = {"slo": slo, "target": target, "job": "j", **labels}
    for name, value in zip(("slo:period_burn_rate:ratio", "slo:sli_error:ratio_rate5m"), values[3:], strict=False):
        yield PrometheusSample({"__name__": name, **own}, value)


def firing(name: str, **labels: str) -> PrometheusSample:
    return PrometheusSample({"__name__": "ALERTS", "alertname": name, **labels}, 1)


def test_the_table_shows_the_state_of_every_slo_and_target() -> None:
    facts = [
        *recorded("fast", "llama", (0.99, 30, 0.2, 0.25, 0.002)),
        *recorded("fast", "qwen", (0.99, 30, 0.2, 1.5, 0.2)),
        *recorded("up", "llama", (0.999, 7)),
    ]
    alerts = [
        firing("TgiProbeErrorBudgetBurn", slo="fast", target="qwen", severity="page", job="j"),
        firing("TgiProbeTargetDown", target="qwen", severity="page", job="j"),
        firing("TgiProbeErrorBudgetBurn", slo="other", target="llama", severity="page", job="j"),
    ]
    found = slo_statuses(facts, alerts, [PrometheusSample({"slo": "fast", "measure": "ttft"}, 1)])
    assert table(found).splitlines() == [
        "SLO   TARGET  VERDICT  GOOD      BUDGET LEFT",
        "fast  llama   met      99.750 %  75.0 %",
        "fast  qwen    MISSED   98.500 %  -50.0 %",
        "up    llama   no data  -         -",
        "",
        "TARGET  FIRING ALERT                    CONCERNS SLO",
        "qwen    TgiProbeErrorBudgetBurn (page)  fast",
        "qwen    TgiProbeTargetDown (page)       fast",
        "",
        "Burn rate in the last … (1 spends the budget exactly in its period)",
        "SLO   TARGET  5m",
        "fast  llama   0.2",
        "fast  qwen    20",
        "",
        "SLO   A REQUEST IS GOOD WHEN  OBJECTIVE  PERIOD",
        "fast  ttft ≤ 200ms            99 %       30d",
        "up    it succeeds             99.9 %     7d",
    ]


WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


@pytest.mark.parametrize("long", ["llama", "text-generation-inference-llama-3-70b-7f9c6d5b4-x2x9z"])
def test_a_terminal_of_80_columns_holds_the_table_with_a_head_on_every_column(long: str) -> None:
    facts: list[PrometheusSample] = []
    for slo in ("chat-available", "chat-inter-token"):
        facts += recorded(slo, long, (0.999, 30, 0.05, 1.25))
        for window in WINDOWS:
            labels = {"slo": slo, "target": long, "job": "j"}
            facts.append(PrometheusSample({"__name__": f"slo:sli_error:ratio_rate{window}", **labels}, 0.0144))
    alerts = [firing("TgiProbeErrorBudgetBurn", slo="chat-available", target=long, severity="page", job="j")]
    measures = [PrometheusSample({"slo": "chat-inter-token", "measure": "inter_token_latency"}, 1)]
    found = slo_statuses(facts, alerts, measures)
    shown = table(found, 80)
    assert max(map(len, shown.splitlines())) <= 80
    rows = [re.split("  +", line) for line in table(found).splitlines() if "  " in line]
    heads = [row for row in rows if row[0] in ("SLO", "TARGET")]
    assert len(heads) == 4
    assert heads[2][2:] == list(WINDOWS)
    head: list[str] = []
    for row in rows:
        head = row if row in heads else head
        assert len(row) == len(head), row
    assert "…" not in shown.replace("last …", "")  # wrapped, not cut


def test_targets_of_one_name_are_told_apart_by_what_differs() -> None:
    facts = [
        *recorded("fast", "default", (0.99, 30, 0.2, 0.5, 0.002), instance="a:9477"),
        *list(recorded("fast", "default", (0.99, 30, 0.2, 2.0, 0.02), instance="b:9477"))[3:],
    ]
    shown = [line.split("  ") for line in table(slo_statuses(facts, [], [])).splitlines()[1:3]]
    assert [(line[1], line[2].strip()) for line in shown] == [
        ("default (instance=a:9477)", "met"),
        ("default (instance=b:9477)", "MISSED"),
    ]


def test_what_there_is_no_data_of_is_named_with_where_to_look() -> None:
    facts = [*recorded("fast", "llama", (0.99, 30, 0.2)), *recorded("up", "qwen", (0.999, 7))]
    assert explain_no_data(slo_statuses(facts, [], [])) == (
        "no data: fast of target llama, up of target qwen: Prometheus has no metrics of the daemon that probes them; "
        "look at its Status > Targets page"
    )
    scraped = [PrometheusSample({"slo": "fast", "measure": "ttft"}, 1)]
    assert explain_no_data(slo_statuses(facts[:3], [], scraped)) == (
        "no data: fast of target llama: nothing was judged yet; look at the daemon's own page (/) whether the target "
        "is up, and wait two scrapes"
    )


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """One that was given recordings by rules of its own: a met SLO, a missed one, and one without data."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules = [
        {"record": sample.labels["__name__"], "expr": f"vector({sample.value})", "labels": _without_name(sample.labels)}
        for sample in (
            *recorded("good", "llama", (0.99, 30, 0.2, 0.25, 0.002)),
            *recorded("bad", "llama", (0.99, 30, 0.2, 1.5, 0.02)),
            *recorded("silent", "llama", (0.99, 30, 0.2)),
        )
    ]
    (folder / "rules.yml").write_text(json.dumps({"groups": [{"name": "made-up", "rules": rules}]}))
    with prometheus_scraping(folder / "db", rule_files=[str(folder / "rules.yml")]) as server:
        wait_until(lambda: len(server.query('{slo!=""}')) == len(rules), "the rules ran", server.process)
        yield server


def _without_name(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name != "__name__"}


@pytest.mark.parametrize(
    ("slos", "code"),
    [(["good"], 0), (["bad"], 1), (["good", "bad"], 1), (["silent"], 2), (["bad", "silent"], 1), ([], 1)],
)
def test_the_exit_code_answers_a_pipeline(slos: list[str], code: int, prometheus: PrometheusServer) -> None:
    words = [word for slo in slos for word in ("--slo", slo)]
    assert main(["slo", "--prometheus", prometheus.url + "/", *words]) == code


def test_no_data_is_one_line_beside_the_answers(
    prometheus: PrometheusServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("table", "json"):
        assert main(["slo", "--prometheus", prometheus.url, "--format", form]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("no data: silent of target llama: ")


def test_programs_get_json(prometheus: PrometheusServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slo", "--prometheus", prometheus.url, "--slo", "good", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == [
        {
            "slo": "good",
            "target": "llama",
            "labels": {"job": "j"},
            "objective": 0.99,
            "measure": None,
            "threshold_seconds": 0.2,
            "period_seconds": 30 * 86400,
            "good_ratio": pytest.approx(0.9975),
            "budget_left_ratio": pytest.approx(0.75),
            "burn": {"5m": pytest.approx(0.2)},
            "alerts": [],
            "verdict": "met",
            "first_verdict_timestamp_seconds": None,
        }
    ]


def said_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["slo", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    return line


def test_what_cannot_answer_is_one_clear_line(
    prometheus: PrometheusServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    assert said_of(["--prometheus", nobody], capsys) == f"{nobody}: cannot be reached: Connection refused"
    wrong = f"{prometheus.url}/no-such-path"
    assert said_of(["--prometheus", wrong], capsys).startswith(f"{wrong}: answered 404 Not Found; is it")
    assert said_of(["--prometheus", "localhost:9090"], capsys) == (
        "--prometheus: must begin with http:// or https://, not 'localhost:9090'"
    )
    assert said_of(["--prometheus", "http://user:secret@localhost:9090"], capsys).startswith("--prometheus: ")
    assert said_of(["--prometheus", prometheus.url, "--slo", "none"], capsys) == (
        f"--slo none: {prometheus.url} knows no SLO of that name; there is: bad, good, silent"
    )
    missing = tmp_path / "token"
    assert said_of(["--prometheus", nobody, "--bearer-token-file", str(missing)], capsys).startswith(
        f"--bearer-token-file: {missing} cannot be read: "
    )


def test_a_redirect_is_not_followed_and_the_token_stays_where_it_was_meant_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str | None] = []

    class Redirects(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "token").write_text("secret\n")
    with HTTPServer(("127.0.0.1", 0), Redirects) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        line = said_of(["--prometheus", url, "--bearer-token-file", str(tmp_path / "token")], capsys)
        server.shutdown()
        thread.join()
    assert line == (
        f"{url}: answered 302 and sends to http://localhost:{server.server_port}/elsewhere, which is not followed; "
        "name the final address"
    )
    assert asked == ["Bearer secret"]


@pytest.mark.parametrize("token", ["", "sec ret", "sec\nret", "sec\x00ret", "sécret"])
def test_what_is_no_token_is_refused_and_never_printed(
    token: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(token, "utf-8")
    arguments = ["--prometheus", "http://127.0.0.1:1", "--bearer-token-file", str(tmp_path / "token")]
    assert said_of(arguments, capsys) == (
        f"--bearer-token-file: {tmp_path}/token must hold one token: a line of ASCII without blanks inside"
    )


def test_ctrl_c_while_prometheus_is_silent_is_one_line_and_130() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        command = (*TGI_PROBE, "slo", "--prometheus", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with running(command) as asking, silent.accept()[0]:
            asking.send(signal.SIGINT)
            assert asking.wait() == 130, asking.output
    assert asking.stderr == "interrupted\n"


def test_a_page_that_is_no_prometheus_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with inbox_listening() as (_, port):
        line = said_of(["--prometheus", f"http://127.0.0.1:{port}"], capsys)
    assert "is it the address of Prometheus?" in line


# --- other people's series, numbers that are none, and servers that answer something else


FAST = (0.99, 30, 0.2, 0.25, 0.002)
BURN, RATIO = "slo:period_burn_rate:ratio", "slo:sli_error:ratio_rate"


def test_series_of_others_with_the_same_names_are_passed_over() -> None:
    ours = list(recorded("fast", "llama", FAST))
    own = {"slo": "fast", "target": "llama"}
    foreign = [
        PrometheusSample({"__name__": f"{RATIO}_total", **own}, 7),
        PrometheusSample({"__name__": f"{RATIO}5x", **own}, 7),
        PrometheusSample({"__name__": f"{RATIO}_by_service:5m", **own}, 7),
        PrometheusSample({"__name__": f"{RATIO}5m", "slo": "fast"}, 7),
        PrometheusSample({"__name__": "slo:objective:ratio", "sloth_slo": "x"}, 0.9),
        PrometheusSample({"__name__": "slo:objective:ratio", "slo": "theirs", "target": "x"}, 99.9),
        PrometheusSample({"__name__": "slo:objective:ratio", "slo": "theirs", "target": "y"}, float("nan")),
        PrometheusSample({"__name__": "slo:objective:ratio", "slo": "theirs", "target": "z"}, 1),
        PrometheusSample(own, 7),
    ]
    alerts = [PrometheusSample({"alertstate": "firing", "target": "llama"}, 1)]
    assert slo_statuses([*foreign, *ours, *foreign], alerts, [PrometheusSample({}, 1)]) == slo_statuses(ours, [], [])


def test_an_slo_that_is_recorded_twice_is_told_once() -> None:
    twice = [*recorded("fast", "llama", FAST), *recorded("fast", "llama", FAST)]
    assert slo_statuses(twice, [], []) == slo_statuses(list(recorded("fast", "llama", FAST)), [], [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_no_data_of_its_daemon_alone(value: float) -> None:
    facts = [
        *recorded("fast", "llama", (0.99, value, value, 0.5, 0.002), instance="a"),
        *list(recorded("fast", "llama", (0.99, 30, 0.2, value, value), instance="b"))[3:],
    ]
    found = slo_statuses(facts, [], [])
    assert [(one.labels["instance"], one.verdict, one.threshold) for one in found] == [
        ("a", "met", None),
        ("b", "no data", None),
    ]
    assert found[1].burn == {}
    json.loads(as_json(found), parse_constant=pytest.fail)


@contextlib.contextmanager
def serving(answer: Callable[[str], tuple[int, Mapping[str, str], bytes]]) -> Iterator[str]:
    """The address of a server that answers a path with a status, headers and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def answering(
    status: int, body: str | bytes, kind: str = "application/json", **headers: str
) -> contextlib.AbstractContextManager[str]:
    """The address of a server that says this to every question."""
    encoded = body if isinstance(body, bytes) else body.encode()
    return serving(lambda _path: (status, {"Content-Type": kind, **headers}, encoded))


def vector(*samples: PrometheusSample) -> str:
    result = [{"metric": dict(one.labels), "value": [1, str(one.value)]} for one in samples]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})


NAN = list(recorded("fast", "llama", (0.99, 30, 0.2, float("nan"), float("inf"))))


def prometheus_with(
    recorded: Sequence[PrometheusSample], judged: bool = False, groups: Sequence[Mapping[str, object]] = ()
) -> contextlib.AbstractContextManager[str]:
    """The address of a server that answers like a Prometheus with these recordings, at Unix time 1000."""
    requests = [PrometheusSample({"slo": "fast", "target": "llama"}, 3)] if judged else []
    answers = {RECORDED: recorded, JUDGED: requests, NOW: [PrometheusSample({}, 1000)]}
    rules = json.dumps({"status": "success", "data": {"groups": [*groups]}})

    def answer(url: str) -> tuple[int, Mapping[str, str], bytes]:
        path, _, text = url.partition("?")
        expr = parse_qs(text).get("query", [""])[0]
        body = rules if path.endswith("/rules") else vector(*answers.get(expr, ()))
        return 200, {"Content-Type": "application/json"}, body.encode()

    return serving(answer)


def group(name: str, interval: float, evaluated: str) -> dict[str, object]:
    return {"name": name, "interval": interval, "lastEvaluation": evaluated, "rules": []}


QUICK = group("tgi-probe-slo-fast", 15, "1970-01-01T00:16:35.123456789Z")
EARLY = list(recorded("fast", "llama", (0.99, 30, 0.2)))
BURNS = PrometheusSample({"__name__": "slo:sli_error:ratio_rate5m", "slo": "fast", "target": "llama"}, 0.002)


@pytest.mark.parametrize(
    ("facts", "evaluated", "said"),
    [
        pytest.param([*EARLY, BURNS], "1970-01-01T00:16:30.5Z", ("at", 1140.5), id="the next evaluation"),
        pytest.param(EARLY, "1970-01-01T00:14:21Z", ("at", 1161), id="the next one comes before there are two scrapes"),
        pytest.param([*EARLY, BURNS], "0001-01-01T00:00:00Z", ("by", 1150), id="never evaluated"),
        pytest.param([*EARLY, BURNS], None, None, id="recordings that another Prometheus makes"),
    ],
)
def test_just_after_the_start_the_time_of_the_first_verdict_is_told(
    facts: list[PrometheusSample],
    evaluated: str | None,
    said: tuple[str, float] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    groups = [QUICK, group("tgi-probe-slo-fast-period", 150, evaluated)] if evaluated else []
    with prometheus_with(facts, judged=True, groups=groups) as url:
        line = said_of(["--prometheus", url], capsys)
        when = "in a few minutes"
        if said is not None:
            when = f"{said[0]} {time.strftime('%H:%M:%S %Z', time.localtime(said[1]))}"
        assert line == f"too early: first verdict {when} (fast of target llama)"
        assert main(["slo", "--prometheus", url, "--format", "json"]) == 2
    [found] = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["first_verdict_timestamp_seconds"]) == ("too early", said[1] if said else None)


def test_a_real_prometheus_tells_when_the_first_verdict_is_due(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"slo": "fast", "target": "llama"}
    quick = [
        {"record": name, "expr": f"vector({value})", "labels": own}
        for name, value in (("slo:objective:ratio", 0.99), ("tgi_probe_slo_requests_total", 3))
    ]
    slow = [{"record": "slo:period_burn_rate:ratio", "expr": "vector(1)", "labels": own}]
    groups = [
        {"name": "tgi-probe-slo-fast", "rules": quick},
        {"name": "tgi-probe-slo-fast-period", "interval": "30d", "rules": slow},
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": groups}))
    with prometheus_scraping(tmp_path / "db", rule_files=[str(tmp_path / "rules.yml")]) as server:
        wait_until(lambda: len(server.query("tgi_probe_slo_requests_total")) == 1, "the rules ran", server.process)
        line = said_of(["--prometheus", server.url], capsys)
    assert re.fullmatch(r"too early: first verdict by [0-9:]+ \w+ \(fast of target llama\)", line), line


def test_before_the_rules_have_run_it_is_too_early(capsys: pytest.CaptureFixture[str]) -> None:
    with prometheus_with([], groups=[QUICK]) as url:
        line = said_of(["--prometheus", url], capsys)
    assert line == f"too early: {url} has not evaluated the rules of the SLOs yet; wait a minute"


@pytest.mark.parametrize("form", ["table", "json"])
def test_nan_is_no_data_for_a_pipeline_and_for_programs(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with prometheus_with(NAN) as url:
        assert main(["slo", "--prometheus", url, "--format", form]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("no data: fast of target llama")
    assert "nan" not in said.out.lower()
    if form == "json":
        [found] = json.loads(said.out, parse_constant=pytest.fail)
        assert (found["verdict"], found["good_ratio"], found["burn"]) == ("no data", None, {})


TOO_MANY = "query processing would load too many samples into memory in query execution"
HTML = "<html><title>Sign in</title></html>"


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (
            422,
            json.dumps({"status": "error", "error": TOO_MANY}),
            "application/json",
            f"422 Unprocessable .*: {TOO_MANY}$",
        ),
        (
            503,
            json.dumps({"error": "query\ntimed out"}),
            "application/json",
            "503 Service Unavailable: query timed out$",
        ),
        (400, json.dumps({"error": "bad \ud83d" + "y" * 9999}), "text/plain", "400 Bad Request: bad \ufffdy+…$"),
        (200, json.dumps({"status": "error", "error": TOO_MANY}), "application/json", f": {TOO_MANY}$"),
        (503, HTML, "text/html", "503 Service Unavailable; is it the address of Prometheus[?]$"),
        (401, HTML, "text/html", "401 Unauthorized; use --bearer-token-file$"),
        (403, "", "text/plain", "403 Forbidden; use --bearer-token-file$"),
        (404, "[]", "application/json", "404 Not Found; is it the address of Prometheus[?]$"),
        (200, HTML, "text/html", r"its answer \(text/html\) is not what Prometheus says.*; is it the address"),
        (200, b"\xff\xfe", "text/plain", "is not what Prometheus says"),
        (200, "[" * 100_000, "application/json", "is not what Prometheus says"),
        (200, "null", "application/json", "is not what Prometheus says"),
        (200, '{"data": {"result": [1, "7"]}}', "application/json", "is not what Prometheus says"),
        (200, '{"data": {"result": [{"metric": {"a": 1}, "value": [1, "7"]}]}}', "application/json", "is not what"),
        (200, '{"data": {"result": [{"metric": {}, "value": [1, "x"]}]}}', "application/json", "is not what"),
        (200, vector(), "application/json", "has no recordings of SLOs; load the file of `tgi-probe rules`"),
    ],
)
def test_an_answer_that_is_no_result_is_one_line_with_what_the_server_says(
    status: int, body: str | bytes, kind: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, body, kind) as url:
        line = said_of(["--prometheus", url], capsys)
    assert line.startswith(f"{url}: ")
    assert re.search(said, line), line
    assert len(line) < 500


@pytest.mark.parametrize("url", ["http://[", "http://a b", "http://h:port", "http://" + "a" * 70 + "/", "http://é\x00"])
def test_an_address_that_is_none_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said_of(["--prometheus", url], capsys)


def test_a_label_that_cannot_be_printed_is_made_legible(capfd: pytest.CaptureFixture[str]) -> None:
    with prometheus_with(list(recorded("fast", "half \ud83d\x1b[31m", FAST))) as url:
        assert main(["slo", "--prometheus", url]) == 0
    assert "half \ufffd\ufffd[31m" in capfd.readouterr().out
