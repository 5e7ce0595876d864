"""Files that others write: a pipe, an endless one, one that is written while it is read."""

import os
import threading
from pathlib import Path

import pytest

from exporter.config import bounded_read
from exporter.config.bounded_read import read_bounded
from exporter.config.errors import MOST_PROBLEMS, SettingsError


def test_of_a_long_file_one_byte_more_than_wanted_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5) == b"12345"
    assert read_bounded(file, 3) == b"1234"
    assert len(read_bounded(Path("/dev/zero"), 1 << 20)) == (1 << 20) + 1


def test_a_pipe_is_read_to_its_end_however_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for _ in range(3):
                file.write(b"x" * 50_000)  # more than one read of a pipe gives

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read_bounded(pipe, 1 << 20) == b"x" * 150_000
    finally:
        writer.join()


def test_a_pipe_that_nobody_writes_to_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_read, "PATIENCE_SECONDS", 0.05)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="nobody writes to"):
        read_bounded(tmp_path / "pipe", 10)


def test_of_very_many_problems_the_first_are_named_also_when_they_are_told_again() -> None:
    error = SettingsError([f"line {number}" for number in range(1000)])
    assert error.problems[MOST_PROBLEMS:] == ["and 950 more problems; is it the right file?"]
    assert SettingsError(error.problems).problems == error.problems
