"""What the generated dashboards ask a data source: every expression, read from the JSON as Grafana reads it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "grafana" / "dashboards"
Json = dict[str, Any]

# PromQL without a parser at hand: names, and what is no metric although it looks like one.
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^{}]*)\})?\s*(?:\[([^\]]*)\])?")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_MATCHER = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*\"((?:[^\"\\]|\\.)*)\"")
_KEYWORDS = frozenset(
    {"Inf", "and", "or", "unless", "bool", "by", "on", "group_left", "group_right", "offset", "start", "end"}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One expression, where it stands, and whether it is asked for a range of time or for its end."""

    dashboard: str
    place: str
    expr: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.place}"

    def filled(self, values: dict[str, str]) -> str:
        """With the variables and intervals that Grafana fills in."""
        text = self.expr
        for name in sorted(values, key=len, reverse=True):
            text = text.replace(f"${name}", values[name])
        assert "$" not in re.sub(r"\"[^\"$]*\$1[^\"]*\"", "", text), f"{self}: a variable is left in {text}"
        return text


@dataclass(frozen=True, slots=True)
class Selector:
    metric: str
    labels: frozenset[str]


def dashboards() -> dict[str, Json]:
    """File name → dashboard."""
    return {file.name: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


def panels(dashboard: Json) -> Iterator[Json]:
    """All but the rows, those in folded rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def asked(name: str, dashboard: Json) -> Iterator[Asked]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            place = f"{panel['title']} ({panel['id']}) {target['refId']}"
            yield Asked(name, place, target["expr"], bool(target.get("instant")) and not target.get("range"))
    for annotation in dashboard["annotations"]["list"]:
        yield Asked(name, f"annotation {annotation['name']}", annotation["expr"], instant=False)


def everything() -> list[Asked]:
    return [one for name, dashboard in dashboards().items() for one in asked(name, dashboard)]


def selectors(expr: str) -> list[Selector]:
    """Every metric in an expression, with the labels of its matchers."""
    bare = re.sub(_GROUPING, " ", expr)
    found = []
    outside = re.sub(r"\"(?:[^\"\\]|\\.)*\"(?![^{}]*\})", '""', bare)  # texts, but not those of matchers
    for match in _SELECTOR.finditer(outside):
        name, matchers, _ = match.groups()
        after = outside[match.end(1) :].lstrip()
        if name in _KEYWORDS or (matchers is None and after.startswith("(")) or _within_braces(outside, match.start()):
            continue
        found.append(Selector(name, frozenset(label for label, _ in _MATCHER.findall(matchers or ""))))
    return found


def _within_braces(text: str, position: int) -> bool:
    """Inside {…} or […], where names are labels and units of time."""
    before = text[:position]
    return before.count("{") > before.count("}") or before.count("[") > before.count("]") or _after_digit(before)


def _after_digit(before: str) -> bool:
    """Such as the d of 30d, or the w of `offset 1w`, or $__range."""
    return bool(before) and (before[-1].isdigit() or before[-1] in "$@.")


def groupings(expr: str) -> set[str]:
    """The labels of by (…), on (…) and their like, less those that the expression itself makes."""
    labels = {label.strip() for group in _GROUPING.findall(expr) for label in group.split(",") if label.strip()}
    return labels - made(expr)


def made(expr: str) -> set[str]:
    """Labels that label_replace, label_join and count_values add."""
    texts = re.findall(r"\"((?:[^\"\\]|\\.)*)\"", expr)
    adds = any(word in expr for word in ("label_replace(", "label_join(", "count_values"))
    return {text for text in texts if adds and _NAME.fullmatch(text)}
