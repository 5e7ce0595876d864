"""The real programs that tests run against, found on the PATH: `make real-parts` installs them."""

import os
import shutil
from typing import NoReturn

import pytest

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "kubectl": "kubernetes-client",
    "tmux": "tmux",
}


def real_part(program: str) -> str:
    """The path of a program. Where it is missing the test is skipped; under CI it fails, never skips."""
    found = shutil.which(program)
    if found is not None:
        return found
    lack = (
        f"{program} is not on the PATH (Debian package {PACKAGES.get(program, program)}; `make real-parts` installs it)"
    )
    lacking(lack)


def prometheus() -> str:
    return real_part("prometheus")


def promtool() -> str:
    return real_part("promtool")


def alertmanager() -> str:
    """Debian calls it so: plain `alertmanager` is another program there."""
    return real_part("prometheus-alertmanager")


def amtool() -> str:
    return real_part("amtool")


def lacking(what: str) -> NoReturn:
    """A test cannot run for want of this: it is skipped; under CI it fails, never skips."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
