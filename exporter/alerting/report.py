"""`tgi-probe slo`: are the objectives met? Asked of Prometheus, which evaluates the rules of `tgi-probe rules`."""

import argparse
import http.client
import json
import math
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from exporter.alerting import promql
from exporter.config import notation
from exporter.observation import legible

TIMEOUT = 10.0
RATIO = "slo:sli_error:ratio_rate"
OBJECTIVE = "slo:objective:ratio"
LONGEST = 300  # characters of what somebody else says
LONGEST_REPLY = 64 * 1024 * 1024  # bytes
# All that is recorded of SLOs and needed here, in one question.
FACTS = (
    '{__name__=~"slo:(sli_error:ratio_rate.+|objective:ratio|threshold:seconds|time_period:days|period_burn_rate:ratio)",'
    'slo!="",target!=""}'
)
FIRING = 'ALERTS{alertname=~"TgiProbe.+",alertstate="firing"}'
MEASURES = "max by (slo, measure) (tgi_probe_slo_info)"


class Unanswered(Exception):
    """Prometheus could not be asked, or does not know; the message is one line, with the mend."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


@dataclass(slots=True)
class Answer:
    """One SLO of one target. Ratios, seconds; None where Prometheus has no data."""

    slo: str
    target: str
    objective: float
    period: float
    measure: str = ""
    threshold: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    period_burn: float | None = None
    burn: dict[str, float] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)

    @property
    def good(self) -> float | None:
        return None if self.period_burn is None else 1 - self.period_burn * (1 - self.objective)

    @property
    def budget_left(self) -> float | None:
        return None if self.period_burn is None else 1 - self.period_burn

    @property
    def verdict(self) -> str:
        if self.budget_left is None:
            return "no data"
        return "met" if self.budget_left >= -1e-9 else "MISSED"


def add_slo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prometheus", required=True, metavar="URL", help="such as http://localhost:9090")
    parser.add_argument("--slo", action="append", default=[], metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "--bearer-token-file", type=Path, metavar="FILE", help="a token that Prometheus, or what is before it, asks for"
    )


def run_slo(arguments: argparse.Namespace) -> int:
    """Print the answers, and on standard error what there is no data of. 0: all met, 1: one is missed, 2: Prometheus
    cannot tell.
    """
    try:
        token = _token(arguments.bearer_token_file)
        samples = {query: ask(arguments.prometheus, query, token) for query in (FACTS, FIRING, MEASURES)}
        found = answers(samples[FACTS], samples[FIRING], samples[MEASURES])
        if not found:
            raise Unanswered(
                f"{arguments.prometheus}: has no recordings of SLOs; "
                "load the file of `tgi-probe rules` into it and wait a minute"
            )
        known = {answer.slo for answer in found}
        unknown, names = sorted(set(arguments.slo) - known), ", ".join(sorted(known))
        if unknown:
            raise Unanswered(f"--slo {unknown[0]}: {arguments.prometheus} knows no SLO of that name; there is: {names}")
        found = [answer for answer in found if not arguments.slo or answer.slo in arguments.slo]
    except Unanswered as trouble:
        print(trouble, file=sys.stderr)
        return 2
    print(table(found) if arguments.format == "table" else as_json(found))
    silent = [answer for answer in found if answer.verdict == "no data"]
    if silent:
        print(why_silent(silent), file=sys.stderr)
    verdicts = {answer.verdict for answer in found}
    return 1 if "MISSED" in verdicts else 2 if "no data" in verdicts else 0


# --- what Prometheus says


def _token(file: Path | None) -> str | None:
    try:
        token = file.read_text("utf-8").strip() if file else None
    except (OSError, UnicodeDecodeError) as error:
        raise Unanswered(f"--bearer-token-file: {file} cannot be read: {error}") from None
    if token is not None and not re.fullmatch("[!-~]+", token):
        # Never the token itself: the line may end in a log.
        raise Unanswered(f"--bearer-token-file: {file} must hold one token: a line of ASCII without blanks inside")
    return token


class _Here(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the token, and the question, to whoever the answer names."""

    def redirect_request(self, *_: object) -> None:
        return None


def ask(url: str, query: str, token: str | None = None) -> list[Sample]:
    """An instant query. Raises Unanswered."""
    if not url.startswith(("http://", "https://")):
        raise Unanswered(f"--prometheus: must begin with http:// or https://, not {url!r}")
    try:
        netloc = urllib.parse.urlsplit(url).netloc
    except ValueError as error:
        raise Unanswered(f"--prometheus: {url!r} is no address: {error}") from None
    if "@" in netloc:
        raise Unanswered(
            "--prometheus: must not hold a user or password; use --bearer-token-file, or a proxy that signs in"
        )
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.build_opener(_Here).open(request, timeout=TIMEOUT) as reply:
            kind, body = reply.headers.get_content_type(), reply.read(LONGEST_REPLY)
    except urllib.error.HTTPError as error:
        with error:
            raise Unanswered(f"{url}: {_refusal(error)}") from None
    except (ValueError, http.client.HTTPException) as error:
        raise Unanswered(f"{url}: is not the address of a Prometheus ({_line(error)})") from None
    except (OSError, ssl.SSLError) as error:
        raise Unanswered(f"{url}: cannot be reached: {_line(getattr(error, 'reason', error))}") from None
    document = _parsed(body)
    if "error" in document:
        raise Unanswered(f"{url}: {_line(document['error'])}")
    try:
        return [_sample(item["metric"], item["value"][1]) for item in document["data"]["result"]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        what = f"its answer ({_line(kind)}) is not what Prometheus says to a query"
        raise Unanswered(f"{url}: {what}; is it the address of Prometheus?") from None


def _parsed(body: bytes) -> Mapping[str, Any]:
    """Empty where it is no JSON object."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict) else {}


def _sample(labels: Mapping[str, str], value: str) -> Sample:
    return Sample({legible(name, LONGEST): legible(text, LONGEST) for name, text in labels.items()}, float(value))


def _refusal(error: urllib.error.HTTPError) -> str:
    """What an error status means, and what Prometheus says of it."""
    if 300 <= error.code < 400:
        to = _line(urllib.parse.unquote(error.headers.get("Location", "elsewhere")).partition("?")[0])
        return f"answered {error.code} and sends to {to}, which is not followed; name the final address"
    status = f"answered {error.code} {_line(error.reason)}"
    if error.code in (401, 403):
        return f"{status}; use --bearer-token-file"
    try:
        said = _parsed(error.read(LONGEST_REPLY)).get("error")
    except (OSError, http.client.HTTPException):
        said = None
    return f"{status}: {_line(said)}" if said else f"{status}; is it the address of Prometheus?"


def _line(text: object) -> str:
    return legible(str(text), LONGEST)


def answers(facts: Iterable[Sample], firing: Iterable[Sample], measures: Iterable[Sample]) -> list[Answer]:
    """One for each SLO and target; several where several daemons watch a target of the same name.

    Series of the same names that are not ours are passed over.
    """
    by_name: dict[str, list[Sample]] = {}
    for sample in facts:
        if {"__name__", "slo", "target"} <= sample.labels.keys():
            by_name.setdefault(sample.labels["__name__"], []).append(sample)
    burning = [one for name, many in by_name.items() if _window(name) is not None for one in many]
    kinds = {sample.labels.get("slo", ""): sample.labels.get("measure", "") for sample in measures}
    alerts = [alert for alert in firing if "alertname" in alert.labels]
    found = []
    objectives = ((one.labels["slo"], one.labels["target"], one.value) for one in by_name.get(OBJECTIVE, []))
    for slo, target, objective in dict.fromkeys(objectives):
        if not 0 < objective < 1:
            continue
        period = _value(by_name.get("slo:time_period:days", []), slo, target)
        threshold = _value(by_name.get("slo:threshold:seconds", []), slo, target)
        blank = (slo, target, objective, (period or 0.0) * 86400, kinds.get(slo, ""))
        series = _of([*by_name.get("slo:period_burn_rate:ratio", []), *burning], slo, target)
        for key in sorted({_own(one) for one in series}) or [()]:
            answer = Answer(*blank, threshold, dict(key))
            for one in series:
                if _own(one) == key and math.isfinite(one.value):
                    _fill(answer, one)
            answer.alerts = sorted({_told(alert) for alert in alerts if _concerns(alert, answer)})
            found.append(answer)
    return sorted(found, key=lambda answer: (answer.slo, answer.target, sorted(answer.labels.items())))


def _window(name: str) -> float | None:
    """Of a recording of ratios, in seconds; None where the name is another, or somebody else's."""
    try:
        return notation.parse_duration(name.removeprefix(RATIO)) if name.startswith(RATIO) else None
    except PydanticCustomError:
        return None


def _value(samples: Sequence[Sample], slo: str, target: str) -> float | None:
    return next((one.value for one in _of(samples, slo, target) if math.isfinite(one.value)), None)


def _of(samples: Sequence[Sample], slo: str, target: str) -> list[Sample]:
    return [one for one in samples if one.labels.get("slo") == slo and one.labels.get("target") == target]


def _own(sample: Sample) -> tuple[tuple[str, str], ...]:
    """What else tells series of the same SLO and target apart."""
    return tuple(sorted(item for item in sample.labels.items() if item[0] not in ("__name__", "slo", "target")))


def _fill(answer: Answer, sample: Sample) -> None:
    name = sample.labels["__name__"]
    if not name.startswith(RATIO):
        answer.period_burn = sample.value
    elif abs((_window(name) or 0.0) - answer.period) > answer.period * 1e-6:
        answer.burn[name.removeprefix(RATIO)] = sample.value / (1 - answer.objective)


def _concerns(alert: Sample, answer: Answer) -> bool:
    """Alerts of the SLO, and those of its target that are about no SLO."""
    labels = alert.labels
    if labels.get("slo", answer.slo) != answer.slo or labels.get("target") != answer.target:
        return False
    return all(labels.get(name, value) == value for name, value in answer.labels.items())


def _told(alert: Sample) -> str:
    return f"{alert.labels['alertname']} ({alert.labels.get('severity', '')})"


# --- what we say


def table(found: Sequence[Answer]) -> str:
    """Columns as wide as they need to be; labels are shown only where they tell targets of one name apart."""
    windows = sorted({window for answer in found for window in answer.burn}, key=notation.parse_duration)
    burning = [f"BURN {window}" for window in windows]
    head = ["SLO", "TARGET", "OBJECTIVE", "THRESHOLD", "PERIOD", "GOOD", "BUDGET LEFT", *burning, "", "ALERTS"]
    rows = [head]
    for answer in found:
        burns = (_number(answer.burn.get(window)) for window in windows)
        rows.append(
            [
                answer.slo,
                _target(answer, found),
                promql.percent(answer.objective),
                _threshold(answer),
                promql.duration(answer.period),
                _percent(answer.good, 3),
                _percent(answer.budget_left, 1),
                *burns,
                answer.verdict,
                ", ".join(answer.alerts) or "-",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def why_silent(silent: Sequence[Answer]) -> str:
    """One line: which SLOs have no data, and where to look. That of a daemon which is scraped has a measure."""
    which = ", ".join(dict.fromkeys(f"{answer.slo} of target {answer.target}" for answer in silent))
    if not any(answer.measure for answer in silent):
        look = "Prometheus has no metrics of the daemon that probes them; look at its Status > Targets page"
    else:
        look = (
            "nothing was judged yet; look at the daemon's own page (/) whether the target is up, and wait two scrapes"
        )
    return f"no data: {which}: {look}"


def _target(answer: Answer, found: Sequence[Answer]) -> str:
    same = [other.labels for other in found if (other.slo, other.target) == (answer.slo, answer.target)]
    telling = [
        f"{name}={value}" for name, value in answer.labels.items() if any(labels.get(name) != value for labels in same)
    ]
    return f"{answer.target} ({', '.join(telling)})" if telling else answer.target


def _threshold(answer: Answer) -> str:
    if answer.threshold is None:
        return "success"
    return f"{answer.measure} ≤ {promql.duration(answer.threshold)}".removeprefix(" ≤ ")


def _percent(ratio: float | None, digits: int) -> str:
    return "-" if ratio is None else f"{ratio * 100:.{digits}f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def as_json(found: Sequence[Answer]) -> str:
    """The same for programs: ratios, and seconds."""

    def item(answer: Answer) -> dict[str, Any]:
        return {
            "slo": answer.slo,
            "target": answer.target,
            "labels": answer.labels,
            "objective": answer.objective,
            "measure": answer.measure or None,
            "threshold_seconds": answer.threshold,
            "period_seconds": answer.period,
            "good_ratio": answer.good,
            "budget_left_ratio": answer.budget_left,
            "burn": answer.burn,
            "alerts": answer.alerts,
            "verdict": answer.verdict.lower(),
        }

    return json.dumps([item(answer) for answer in found], indent=2, ensure_ascii=False, allow_nan=False)
