"""The lock of one shard: one prober at a time. Its file lists the batches to clear if the prober is killed.

Calls of two clients may reach the ranks of a shard in different order; the ranks then wait for each other until they
are killed. So every prober of this machine locks the same file beside the first rank's socket. It is a flock, which the
kernel releases when the holder ends. The file holds one line of JSON. Where it cannot be made, the folder is locked
instead; probers with the file share the folder.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
import threading
from collections.abc import Sequence
from typing import Any

from exporter.config.notation import canonical_address
from exporter.probes.interface import Occupied

MOST_BYTES = 64 * 1024
MOST_BATCHES = 64
OWN_IDS = range(1 << 63, 1 << 64)
# Another prober may replace the file between our opening and locking it, but not again and again.
ATTEMPTS = 5
# The folder of the locks of shards on TCP. $TMPDIR differs between users.
TEMPORARY = "/tmp"
# The file's `calibration` where the request for the tokens of our words ended the server.
ENDED = "ended the server"
HOST = os.uname().nodename


class NoLock(Exception):
    """Nothing could be locked; the text says what was tried."""


def lock_path(address: str) -> str:
    """The lock file of the shard at `address`, the same for every way to write the address."""
    where = canonical_address(address)
    folder, name = TEMPORARY, where
    if where.startswith("unix:"):
        folder, name = os.path.split(os.path.realpath(where.removeprefix("unix:")))
    return os.path.join(folder, f".{name}.tgi-probe")


class ShardLock:
    """The lock of the shard at `address`. Used by one thread at a time, except `release`.

    While it is taken, `uncleared` (batch ids) and `shard` are what the last holder left in the file. The file keeps
    `quarantine` and `calibration`.
    """

    def __init__(self, address: str) -> None:
        self.uncleared: tuple[int, ...] = ()
        self.shard: tuple[int, ...] = ()
        self.quarantine: dict[str, Any] = {}
        self.calibration = ""
        self._address = address
        self._path = lock_path(address)
        self._file: int | None = None
        self._folder: int | None = None
        self._writable = False
        self._content: bytes | None = None
        self._guard = threading.Lock()  # another thread may call `release`, and the system reuses file numbers

    def take(self) -> None:
        """Without waiting. Raises Occupied where another prober has it, NoLock."""
        for _ in range(ATTEMPTS):
            file, writable = _open(self._path, self._address)
            folder = _open_folder(self._path)
            try:
                held = _lock(file, folder)
            except BlockingIOError:
                who = _holder(_parsed(_read(file)))
                _close(file, folder)
                raise Occupied(f"{who} uses {self._address}") from None
            if not held:
                _close(file, folder)
                raise NoLock(f"neither {self._path} nor its directory can be locked")
            if file is None or _is_at(self._path, file):
                self._file, self._folder, self._writable = file, folder, writable
                return self._read_file()
            _close(file, folder)
        raise Occupied(f"another prober uses {self._address}, and makes {self._path} anew all the time")

    def _read_file(self) -> None:
        """Read what the last holder left. Nearly always it was this one, and then nothing is parsed."""
        content = _read(self._file)
        if content != self._content:
            note = _parsed(content)
            quarantine = note.get("quarantine")
            self.uncleared, self.shard = _own_ids(note.get("owed")), _numbers(note.get("shard"))
            self.quarantine = quarantine if isinstance(quarantine, dict) else {}
            self.calibration = ENDED if note.get("calibration") == ENDED else ""
            self._content = content

    def write(self, uncleared: Sequence[int], shard: Sequence[int]) -> None:
        """Write down what is to be cleared if the holder is killed; nothing after the release. Raises OSError."""
        note = {"pid": os.getpid(), "host": HOST, "owed": [*uncleared], "shard": [*shard]}
        note |= {"quarantine": self.quarantine} | ({"calibration": self.calibration} if self.calibration else {})
        line = json.dumps(note).encode() + b"\n"
        with self._guard:
            if self._file is None and self._folder is None:
                return
            if self._file is None or not self._writable:
                raise PermissionError(errno.EACCES, f"{self._path} cannot be written")
            before, self._content = self._content or b"", None
            written = os.pwrite(self._file, line, 0)
            if written < max(len(line), len(before)):
                os.ftruncate(self._file, written)
            if written < len(line):
                raise OSError(errno.ENOSPC, f"{self._path}: no space left")
        self.uncleared, self.shard, self._content = tuple(uncleared), tuple(shard), line

    def remove(self) -> None:
        """Delete the file where nothing in it is needed any more. The next prober makes its own."""
        with self._guard:
            needed = self.quarantine or self.calibration
            if self._file is not None and not needed and _is_at(self._path, self._file):
                with contextlib.suppress(OSError):
                    os.unlink(self._path)

    def release(self) -> None:
        with self._guard:
            file, folder = self._file, self._folder
            self._file = self._folder = None
            _close(file, folder)


def _open(path: str, address: str) -> tuple[int | None, bool]:
    """A descriptor of the lock file, and whether it can be written; None where it cannot be opened or made.

    It follows no link: everybody may be able to write in the folder.
    """
    safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    make = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for flags in (os.O_RDWR, make, os.O_RDWR, os.O_RDONLY):  # twice: another prober may make it in between
        try:
            file = os.open(path, flags | safe, 0o600)
        except OSError:
            continue
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            if flags == make:
                _open_to_probers(file, address)
            return file, flags != os.O_RDONLY
        os.close(file)
    return None, False


def _open_to_probers(file: int, address: str) -> None:
    """Whoever may connect to the shard may read and write its lock file, despite the umask; nobody else may.

    A port can be connected to by every user of the machine.
    """
    mode = 0o666
    where = canonical_address(address)
    with contextlib.suppress(OSError):
        if where.startswith("unix:"):
            shard = os.stat(where.removeprefix("unix:"))
            writers = shard.st_mode & 0o222  # to connect is to write
            mode = 0o600 | writers | writers << 1
            if os.geteuid() == 0:
                os.fchown(file, shard.st_uid, shard.st_gid)
        os.fchmod(file, mode)


def _open_folder(path: str) -> int | None:
    try:
        return os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _lock(file: int | None, folder: int | None) -> bool:
    """Whether something could be locked. Raises BlockingIOError where another prober has it."""
    if file is None:
        return _flock(folder, fcntl.LOCK_EX)
    shared = _flock(folder, fcntl.LOCK_SH)
    return _flock(file, fcntl.LOCK_EX) or (shared and _flock(folder, fcntl.LOCK_EX))


def _flock(descriptor: int | None, how: int) -> bool:
    """False where this file system has no such locks."""
    if descriptor is None:
        return False
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


def _is_at(path: str, file: int) -> bool:
    """Whether the path still leads to this file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(file))
    except OSError:
        return False


def _read(file: int | None) -> bytes:
    try:
        return os.pread(file, MOST_BYTES, 0) if file is not None else b""
    except OSError:
        return b""


def _parsed(content: bytes) -> dict[str, Any]:
    """The first line as a JSON object; empty where it is something else."""
    line, end, _ = content.partition(b"\n")
    try:
        note = json.loads(line) if end or len(content) < MOST_BYTES else None
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(each for each in value if type(each) is int) if isinstance(value, list) else ()


def _own_ids(value: object) -> tuple[int, ...]:
    """The ids that a prober may have chosen. A router's ids are never in this range."""
    return tuple(dict.fromkeys(each for each in _numbers(value) if each in OWN_IDS))[:MOST_BATCHES]


def _holder(note: dict[str, Any]) -> str:
    pid, host = note.get("pid"), note.get("host")
    if type(pid) is not int or not isinstance(host, str) or not host.isprintable() or len(host) > 253:
        return "another prober"
    if host != HOST:
        return f"another prober (process {pid} on {host})"
    return "another target of this process" if pid == os.getpid() else f"another prober (process {pid})"
