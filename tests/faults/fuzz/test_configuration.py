"""Any configuration file: it is taken, or refused with a line for each problem; no traceback, hang or full memory."""

import contextlib
import io
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli import main
from exporter.config import dump, sources, yaml_file
from exporter.config.errors import SettingsError
from exporter.web import web_file
from tests.faults.fuzz.documents import KEYS, ROOT, Document, mutated, nearly_valid
from tests.faults.fuzz.examples import MIB, ends, fuzz, in_lines, raised, takes_at_most

FILES = [
    file.read_bytes()
    for file in [*sorted((ROOT / "tests/config").rglob("*.yaml")), *sorted((ROOT / "deploy").rglob("tgi-probe.yaml"))]
]
SYNTAX = [
    *(
        b"&a ",
        b"*a",
        b"<<: *a",
        b"<<: [*a, *a]",
        b"!!int ",
        b"!!float ",
        b"!!timestamp ",
        b"!!binary ",
        b"!!set ",
        b"!!omap ",
    ),
    *(b"!!python/object/apply:os.system [true]", b"? ", b"- ", b": ", b"| ", b"> ", b"{", b"}", b"[", b"]", b"---\n"),
    *(b"...\n", b"%YAML 9.9\n", b"'", b'"', b"\t", b"\n", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(
        b"0" + b"7" * 400,
        b"1:" * 60 + b"1",
        b"1:" * 300 + b"1.5",
        b"9" * 5000,
        b"0x" + b"f" * 9000,
        b"1e999",
        b"=",
        b"~",
    ),
    *(b"2026-13-01", b"2026-01-01T99:99:99", b"0001-01-01 00:00:00 +23:59", b"0b1", b".inf", b".nan", b"-.inf", b"._1"),
    *(key.encode() + b": " for key in KEYS),
]
WEB_FILES = [
    file.read_bytes()
    for file in [*sorted((ROOT / "tests/web/bad").glob("*.yml")), *sorted((ROOT / "deploy").rglob("web.yml"))]
]
WEB_DOCUMENT: Document = {
    "tls_server_config": {"cert_file": "c", "key_file": "k"},
    "basic_auth_users": {"u": "x"},
    "rate_limit": {"interval": "1s", "burst": 1},
    "http_server_config": {"http2": True, "headers": {"X-Frame-Options": "deny"}},
}
# Deferred, because a failure would print all of their pieces.
ANY_FILE = st.deferred(lambda: st.binary(max_size=200) | mutated(FILES, SYNTAX))
ANY_WEB_FILE = st.deferred(lambda: mutated(WEB_FILES, SYNTAX) | nearly_valid([WEB_DOCUMENT]).map(written))


def written(document: Document) -> bytes:
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


def says(*words: str) -> tuple[int, list[str]]:
    """What a command ends with, and the lines of its problems."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(words)
    return code, error.getvalue().splitlines()


def taken_or_refused(file: Path) -> None:
    """As every command reads it. One that is taken can be written out, and is then taken again."""
    with ends(file.read_bytes()):
        code, lines = says("check", "--syntax-only", "--config", str(file))
        if code == 0:
            assert says("rules", "--config", str(file))[0] == 0
            again = file.with_name("again.yaml")
            again.write_text(dump.text(sources.load(file)), "utf-8")
            assert dump.text(sources.load(again)) == dump.text(sources.load(file))
        else:
            assert code == 2
            assert in_lines(lines), lines
            assert all(line.startswith(str(file)) for line in lines), lines


@fuzz
@given(data=ANY_FILE)
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(data)
    taken_or_refused(file)


@fuzz
@given(document=nearly_valid())
def test_any_document_that_is_nearly_right(tmp_path: Path, document: Document) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(written(document))
    taken_or_refused(file)


@fuzz
@given(data=ANY_WEB_FILE)
def test_any_web_file(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "web.yml"
    file.write_bytes(data)
    with ends(data):
        error = raised(SettingsError, lambda: web_file.load(file))
    assert error is None or in_lines(error.problems), error.problems


def aliases(kind: str, levels: int) -> str:
    """Ten times as much on each level. `kind` has a place for an alias."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {kind % ', '.join([f'*a{level - 1}'] * 10)}")
    return "\n".join([*lines, f"targets: *a{levels - 1}"])


BOMBS = {
    "lists of lists": aliases("[%s]", 12),
    "merged mappings": aliases("{<<: [%s]}", 12),
    "one problem for each value": f"b: &b [{'x, ' * 500}]\nworkloads: [{'{batch_sizes: *b}, ' * 500}]",
    "many values": f"targets: [{'x, ' * 12_000}]",
    "many keys": "\n".join(f"a{number}: 1" for number in range(6_000)),
    "a chain of anchors": "a0: &a0 x\n" + "".join(f"a{n}: &a{n} {{a: *a{n - 1}}}\n" for n in range(1, 2_000)),
    "one long line": "targets: " + "x" * 200_000,
    "one long number": "targets: " + "9" * 200_000,
    "one long hexadecimal number": "targets: 0x" + "f" * 200_000,
    "one long number to base 60": f"targets: {'1:' * 2_000}1",
    "one long key": "x" * 200_000 + ": 1",
    "one long tag": "!" + "x" * 200_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_means_much_is_refused_before_it_takes_memory(
    tmp_path: Path, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tenth of the values that are allowed, and of the memory that they may take: PyYAML is slow."""
    monkeypatch.setattr(yaml_file, "MOST_VALUES", yaml_file.MOST_VALUES // 10)
    file = tmp_path / "c.yaml"
    file.write_text(BOMBS[bomb], "utf-8")
    with ends(bomb), takes_at_most(30 * MIB), pytest.raises(SettingsError) as caught:
        sources.load(file)
    assert in_lines(caught.value.problems)
    assert sum(map(len, caught.value.problems)) < MIB
