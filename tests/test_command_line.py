"""What is mistyped on the command line is told with what was meant; output nobody takes ends without a traceback."""

import os
import subprocess
from pathlib import Path

import pytest

from exporter.cli import main
from tests.processes import TGI_PROBE

GOOD = str(Path(__file__).parent / "config" / "good" / "smallest.yaml")


@pytest.mark.parametrize(
    ("words", "usage", "said"),
    [
        ("check --conifg x", "check", "no such option: --conifg; did you mean --config?"),
        ("check --conifg=x", "check", "no such option: --conifg; did you mean --config?"),
        ("check -c x", "check", "no such option: -c; did you mean --config?"),
        ("check c.yaml", "check", "takes no 'c.yaml'; did you mean --config c.yaml?"),
        ("run --config.chekc", "run", "no such option: --config.chekc; did you mean --config.check?"),
        ("health --verbose", "health", "no such option: --verbose"),
        ("demo --prot 1", "demo", "no such option: --prot; did you mean --port?"),
        ("simulate --rnaks 2", "simulate", "no such option: --rnaks; did you mean --ranks?"),
        ("bench --batch-sizes 1", "bench", "no such option: --batch-sizes; did you mean --batch-size?"),
        ("rules --fromat x", "rules", "no such option: --fromat; did you mean --format?"),
        ("slo --promethues x", "slo", "no such option: --promethues; did you mean --prometheus?"),
        ("chekc", "", "no such command: chekc; did you mean check?"),
        ("start", "", "no such command: start; "),
        ("--config x check", "", "no such option here: --config; the command comes first: tgi-probe check --config …"),
        ("--verison", "", "no such option here: --verison; did you mean --version?"),
        ("", "", "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_mistyped_is_told_with_what_was_meant_and_the_usage_of_its_command(
    words: str, usage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: tgi-probe {usage}".strip() + " ")
    assert f"error: {said}" in error.splitlines()[-1]


@pytest.mark.parametrize("words", [["check", "--conf", GOOD], ["check", f"--config={GOOD}"]])
def test_an_option_may_be_shortened_and_joined_to_its_value(words: list[str]) -> None:
    assert main(words) == 0


@pytest.mark.parametrize(
    "words", [["--help"], ["check", "--config", GOOD], ["rules", "--config", GOOD], ["check", "x"]]
)
@pytest.mark.parametrize("where", [">/dev/full", "2>/dev/full", ">&-", "2>&-", "| true", "2>&1 | true"])
def test_output_that_nobody_takes_is_at_most_one_line_and_no_traceback(words: list[str], where: str) -> None:
    command = " ".join(f"'{word}'" for word in (*TGI_PROBE, *words))
    done = subprocess.run(["bash", "-c", f"{command} {where}"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr


def test_a_full_disk_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*TGI_PROBE, "check", "--config", GOOD], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("words", [["check"], ["rules"]])
def test_a_terminal_that_has_not_every_character_is_no_reason_to_fail(words: list[str]) -> None:
    file = Path(__file__).parents[1] / "deploy" / "compose" / "tgi-probe.yaml"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*TGI_PROBE, *words, "--config", file], capture_output=True, text=True, env=environment)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
