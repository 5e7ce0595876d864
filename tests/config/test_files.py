"""Configuration files: every good one is taken, every bad one is refused with exactly the lines at its top."""

import math
from pathlib import Path

import pytest

from exporter.cli import main
from exporter.config.errors import SettingsError
from exporter.config.settings import Settings
from exporter.config.sources import load

HERE = Path(__file__).parent
GOOD = sorted(HERE.glob("good/*.yaml"))
BAD = sorted(HERE.glob("bad/*.yaml"))


def expected(file: Path) -> list[str]:
    """The comment lines at the top of the file; FILE stands for its path."""
    lines = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# ").replace("FILE", str(file)))
    return lines


def name_of(file: Path) -> str:
    return file.stem


@pytest.mark.parametrize("file", GOOD, ids=name_of)
def test_a_good_file_is_taken(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(load(file), Settings)
    assert main(["check", "--syntax-only", "--config", str(file)]) == 0
    assert capsys.readouterr().out.startswith("ok: ")


def test_what_there_is_one_of_is_counted_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(HERE / "good" / "smallest.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "ok: 1 target, 1 workload, 0 SLOs"


@pytest.mark.parametrize("file", BAD, ids=name_of)
def test_a_bad_file_is_refused_with_the_lines_at_its_top(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected(file), "a bad file begins with its messages"
    assert main(["check", "--config", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == expected(file)


@pytest.mark.parametrize("command", [["check"], ["run"], ["run", "--config.check"]])
def test_every_command_that_reads_a_bad_file_ends_with_2(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = HERE / "bad" / "tab.yaml"
    assert main([*command, "--config", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == expected(file)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    assert refusal(file) == [f"{file}: cannot be read: No such file or directory; check the path and its permissions"]


def test_a_directory_is_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory; check the path and its permissions"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\xff\xfe\x00\x01", "is not UTF-8 text; save it as UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00", "is not YAML: special characters are not allowed (character 0)"),
        (b"a: \x01", "is not YAML: special characters are not allowed (character 3)"),
    ],
)
def test_a_binary_file_is_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "binary.yaml"
    file.write_bytes(content)
    assert refusal(file) == [f"{file}: {line}"]


def test_a_file_that_never_ends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.config.yaml_file.LARGEST_FILE", 1 << 20)
    assert refusal(Path("/dev/zero")) == ["/dev/zero: is larger than 1024 KiB; is it the right file?"]


@pytest.mark.parametrize(
    ("written", "number"), [("0x10", 16), ("1_000", 1000), ("0b101", 5), ("'0644'", 644), ("07", 7), ("089", 89)]
)
def test_a_number_is_what_it_looks_like(tmp_path: Path, written: str, number: int) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"targets: [{{name: a, address: 'h:1'}}]\nworkloads: [{{name: w, sequence_length: {written}}}]\n")
    assert load(file).workloads[0].sequence_length == number


@pytest.mark.parametrize(
    ("written", "yaml_has"),
    [
        ("0644", "420 to YAML (octal)"),
        ("-010", "-8 to YAML (octal)"),
        ("0_10", "8 to YAML (octal)"),
        ("1:30", "90 to YAML (base 60)"),
        ("22:22", "1342 to YAML (base 60)"),
        ("1:30.5", "90.5 to YAML (base 60)"),
    ],
)
@pytest.mark.parametrize("place", ["workloads: [{name: w, decode_length: %s}]", "targets: [{extra_body: {seed: %s}}]"])
def test_a_number_that_yaml_takes_for_another_is_refused_wherever_it_stands(
    tmp_path: Path, written: str, yaml_has: str, place: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(place % written)
    column = place.index("%s") + 1
    mend = "write the number that is meant, or put it in quotes"
    assert refusal(file) == [f"{file}:1:{column}: {written} is {yaml_has}; {mend}"]


def test_a_file_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("[" * 5000)
    assert refusal(file) == [f"{file}: is nested too deeply; write it flatter"]


@pytest.mark.parametrize("value", ["2026-13-01", "!!int x", "1" * 5000, "!!timestamp 7", "!!binary '\u00e9'"])
def test_a_value_that_yaml_itself_cannot_read_is_one_line(tmp_path: Path, value: str) -> None:
    file = tmp_path / "value.yaml"
    file.write_text(f"targets: {value}\n", "utf-8")
    [line] = refusal(file)
    assert line.startswith(f"{file}:")


def test_values_come_out_in_seconds_and_as_written() -> None:
    settings = load(HERE / "good" / "full.yaml")
    chat, burst = settings.workloads
    assert (chat.interval, chat.timeout, burst.interval) == (90.0, 60.0, 0.0)
    assert burst.batch_sizes == (7,)
    assert [slo.threshold for slo in settings.slos] == [0.2, 0.05, 1.5, 120.0, None]
    assert chat.targets == ("llama",)
    assert burst.targets is None
    assert math.isclose(chat.parameters.temperature, 0.7)


def refusal(file: Path) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(file)
    return caught.value.problems
