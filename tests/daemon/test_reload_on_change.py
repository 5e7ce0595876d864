"""A configuration file that changes by itself, as one in a ConfigMap does."""

import os
from pathlib import Path

from tests.end_to_end.parts import daemon_running, write_config
from tests.processes import wait_until


def test_a_changed_file_is_taken_without_being_told(tmp_path: Path) -> None:
    for version, size in (("one", 1), ("two", 2)):
        (tmp_path / version).mkdir()
        file = write_config(tmp_path / version / "config.yaml", "127.0.0.1:1", batch_sizes=[size])
        file.write_text(file.read_text().replace('"web"', '"reload_on_change": true, "web"'))
    # A volume of a ConfigMap changes like this: a link to the new version takes the place of the old one.
    os.symlink("one", tmp_path / "now")
    with daemon_running(tmp_path / "now/config.yaml") as daemon:
        os.symlink("two", tmp_path / "next")
        os.replace(tmp_path / "next", tmp_path / "now")
        wait_until(lambda: daemon.by_labels("tgi_probe_success", batch_size="2"), "the new version", daemon.process)
