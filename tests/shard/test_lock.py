"""One prober at a time at a shard, and what one that was killed has left there."""

import contextlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.probes.interface import Abandoned, Occupied
from exporter.probes.shard import lock
from exporter.probes.shard.lock import NoLock, ShardLock, lock_path
from exporter.probes.shard.prober import ShardProber
from exporter.simulator import Fault, Shard
from tests.shard.interleaving import interleaved
from tests.simulator.caller import Caller, fast, prefill_of

OURS = 2**63 + 5


def workload(**keys: object) -> Workload:
    return Workload.model_validate({"name": "chat", "sequence_length": 32, "decode_length": 8, "timeout": "20s"} | keys)


def prober_of(shard: Shard, rank: int = 0) -> ShardProber:
    return ShardProber(Target(name=f"rank-{rank}", address=shard.addresses[rank], kv_cache="exclusive"))


def batches(shard: Shard) -> list[list[int]]:
    return [[batch["id"] for batch in rank["batches"]] for rank in shard.state()["ranks"]]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/shard-0"


@contextlib.contextmanager
def taken(address: str) -> Iterator[ShardLock]:
    lock = ShardLock(address)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()


def put(address: str, content: bytes) -> Path:
    file = Path(lock_path(address))
    file.write_bytes(content)
    return file


# --- the lock


def test_two_descriptors_of_one_process_exclude_each_other_until_the_release(address: str) -> None:
    with taken(address), pytest.raises(Occupied):
        ShardLock(address).take()
    with taken(address):
        pass


def test_who_holds_it_is_said(address: str) -> None:
    with taken(address) as lock:
        lock.write([OURS], [])
        with pytest.raises(Occupied, match=r"^another target of this process uses unix://"):
            ShardLock(address).take()
        put(address, b'{"pid": 4711, "host": "elsewhere"}\n')
        with pytest.raises(Occupied, match=r"^another prober \(process 4711 on elsewhere\) uses unix://"):
            ShardLock(address).take()
        put(address, b'{"pid": "x", "host": "a\\u001b[31m"}\n')
        with pytest.raises(Occupied, match=r"^another prober uses unix://"):
            ShardLock(address).take()


def test_every_way_to_a_socket_leads_to_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "real" / "s"))
    (tmp_path / "link").symlink_to(tmp_path / "real" / "s")
    spellings = [
        f"unix://{tmp_path}/real/s",
        f"unix:{tmp_path}/real/s",
        f"unix:///{tmp_path}//real/./s",
        f"unix://{tmp_path}/folder/s",
        f"unix://{tmp_path}/link",
        f"unix://{tmp_path}/folder/../real/s",
    ]
    assert {lock_path(spelling) for spelling in spellings} == {str(tmp_path / "real" / ".s.tgi-probe")}


def test_a_port_of_this_machine_has_one_lock_however_its_host_is_written() -> None:
    hosts = ["localhost", "LocalHost.", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "127.1", "0x7f.1", "017700000001"]
    assert len({lock_path(f"{host}:08033") for host in hosts}) == 1
    others = ["127.0.0.2:8033", "localhost:8034", "gpu-1:8033", "[::2]:8033"]
    assert len({lock_path(each) for each in (*others, "localhost:8033")}) == 5


def test_the_lock_of_a_folder_and_those_of_files_in_it_exclude_each_other(tmp_path: Path) -> None:
    def opened(name: str) -> int:
        return os.open(tmp_path / name, os.O_RDONLY)

    (tmp_path / "file").touch()
    with_file = (opened("file"), opened("."))
    assert lock._lock(*with_file)
    with pytest.raises(BlockingIOError):
        lock._lock(None, without := opened("."))
    lock._close(*with_file)
    assert lock._lock(None, without)
    again = (opened("file"), opened("."))
    with pytest.raises(BlockingIOError):
        lock._lock(*again)
    (tmp_path / "other").touch()
    lock._close(without)
    other_shard = (opened("other"), opened("."))
    assert lock._lock(*again)
    assert lock._lock(*other_shard), "two shards in one folder do not hinder each other"
    lock._close(*again, *other_shard)


def test_where_the_file_cannot_be_made_the_folder_is_locked(address: str) -> None:
    os.mkdir(lock_path(address))
    with taken(address) as lock:
        with pytest.raises(Occupied):
            ShardLock(address).take()
        with pytest.raises(OSError, match="cannot be written"):
            lock.write([OURS], [])


def test_without_a_folder_there_is_no_lock() -> None:
    with pytest.raises(NoLock):
        ShardLock("unix:///nowhere/at/all").take()


@pytest.mark.parametrize(("socket_mode", "lock_mode"), [(0o755, 0o600), (0o775, 0o660), (0o777, 0o666), (0o500, 0o600)])
@pytest.mark.parametrize("umask", [0o077, 0])
def test_who_may_connect_to_the_shard_may_open_its_lock_file_whatever_the_umask(
    socket_mode: int, lock_mode: int, umask: int, tmp_path: Path
) -> None:
    shard = tmp_path / "shard"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(shard))
        shard.chmod(socket_mode)
        before = os.umask(umask)
        try:
            with taken(f"unix://{shard}"):
                pass
        finally:
            os.umask(before)
    assert Path(lock_path(f"unix://{shard}")).stat().st_mode & 0o777 == lock_mode


def test_a_port_is_open_to_every_user_and_so_is_its_lock_file() -> None:
    before = os.umask(0o077)
    try:
        with taken("127.0.0.1:7"):
            assert Path(lock_path("127.0.0.1:7")).stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_what_is_no_file_of_its_own_is_left_alone(kind: str, address: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    path = lock_path(address)
    if kind == "symlink":
        os.symlink(precious, path)
    elif kind == "hard link":
        os.link(precious, path)
    else:
        os.mkfifo(path)
    with taken(address) as lock:
        with pytest.raises(OSError, match="cannot be written"):
            lock.write([OURS], [])
        lock.remove()
    assert os.path.lexists(path)
    assert precious.read_text() == "keep me"


# --- the note in it


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(OURS),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["owed", "shard", "quarantine"]), inner),
        ).map(lambda value: json.dumps(value).encode() + b"\n"),
    )
)
def test_whatever_stands_in_the_file_only_own_ids_are_owed(address: str, content: bytes) -> None:
    put(address, content)
    with taken(address) as lock:
        assert all(2**63 <= each < 2**64 for each in lock.uncleared)
        lock.write([OURS], [1, 2])
    with taken(address) as lock:
        assert (lock.uncleared, lock.shard) == ((OURS,), (1, 2))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 60_000,
        b'{"owed": [' + b"9" * 10_000 + b"]}",
        b'{"owed": [9223372036854775813]}' + b" " * 70_000,
        b'{"owed": [true, 1.0, 0, 5, -1, 18446744073709551616, "9223372036854775813"]}',
        b"\xff\xfe",
        b"",
    ],
    ids=["nested", "a long number", "huge", "foreign ids", "no text", "empty"],
)
def test_content_that_no_prober_wrote_is_nothing_owed(address: str, content: bytes) -> None:
    put(address, content)
    with taken(address) as lock:
        assert lock.uncleared == ()


def test_what_remains_of_a_longer_line_does_not_spoil_a_shorter_one(address: str) -> None:
    put(address, json.dumps({"owed": [OURS]}).encode() + b'\n"rest of a longer line"}')
    with taken(address) as lock:
        assert lock.uncleared == (OURS,)


def test_the_quarantine_is_kept_when_what_is_owed_is_written_anew_and_keeps_the_file(address: str) -> None:
    quarantine = {"chat": {"32": "died on it"}}
    put(address, json.dumps({"quarantine": quarantine}).encode())
    with taken(address) as lock:
        lock.write([OURS], [])
        lock.write([], [])
        lock.remove()
    with taken(address) as lock:
        assert lock.quarantine == quarantine


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_warning_and_the_probe_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard", ranks=2)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        with full_disk():
            for _ in range(3):
                assert prober.probe(workload(), 1, lambda: False).outcome is Outcome.OK
        prober.close()
    assert [line for line in caplog.messages if "cannot be noted" in line] == caplog.messages
    assert len(caplog.messages) == 1


# --- at a shard


def test_where_nothing_can_be_locked_one_rank_is_probed_with_one_warning_and_several_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "TEMPORARY", "/nowhere/at/all")
    with Shard(fast()) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        for _ in range(2):
            assert prober.probe(workload(), 1, lambda: False).outcome is Outcome.OK
        prober.close()
    assert len(caplog.messages) == 1
    assert "other probers are not kept out" in caplog.messages[0]
    with Shard(fast(ranks=2)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        with pytest.raises(Failure, match="must be locked against other probers") as found:
            prober.probe(workload(), 1, lambda: False)
        assert found.value.outcome is Outcome.REFUSED
        prober.close()
        assert not any(served.method == "Prefill" for served in shard.record())


def probed_by_two(shard: Shard, enough: int) -> list[int]:
    """Two targets of one process, one at each rank's address; how many probes each had when both had enough, or the
    server died.
    """
    counts = [0, 0]
    deadline = time.monotonic() + 20

    def probe(rank: int) -> None:
        prober = prober_of(shard, rank)
        while min(counts) < enough and shard.died is None and time.monotonic() < deadline:
            with contextlib.suppress(Occupied, Failure):
                prober.connect(5.0)
                prober.settle(5.0)
                prober.probe(workload(timeout="2s"), 2, lambda: False)
                counts[rank] += 1
        with contextlib.suppress(Failure):
            prober.close()

    threads = [threading.Thread(target=probe, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def test_two_targets_that_are_ranks_of_one_model_take_turns(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard", ranks=2, rank_timeout=1.0)) as shard:
        assert min(probed_by_two(shard, 30)) >= 30
        assert shard.died is None
        assert not interleaved(shard.record())
        assert batches(shard) == [[], []]
    assert os.listdir(tmp_path) == [], "no file stays where nothing is owed"


def test_without_the_lock_their_calls_mix_and_end_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(10**9))
    monkeypatch.setattr(lock, "lock_path", lambda _: str(tmp_path / f"lock-{next(numbers)}"))
    with Shard(fast(ranks=2, rank_timeout=1.0)) as shard:
        probed_by_two(shard, 30)
        assert shard.died is not None or interleaved(shard.record())


def left_by_a_killed_prober(shard: Shard, *ids: int) -> None:
    """The batches are in the shard, and the file says so."""
    callers = [Caller(address) for address in shard.addresses]
    for batch_id in ids:
        for future in [caller.send("Prefill", prefill_of(batch_id)) for caller in callers]:
            future.result()
    for caller in callers:
        caller.close()
    prober = prober_of(shard)
    prober.connect(5.0)
    assert prober._ranks is not None
    with taken(shard.addresses[0]) as lock:
        lock.write(ids, prober._ranks.connection())


def test_what_a_killed_prober_has_left_is_cleared_on_every_rank_when_the_next_one_connects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard", ranks=2)) as shard:
        left_by_a_killed_prober(shard, OURS, 7)
        assert batches(shard) == [[OURS, 7]] * 2
        for _ in range(2):
            prober = prober_of(shard, rank=1)
            prober.connect(5.0)
            prober.close()
        assert batches(shard) == [[7]] * 2, "an id of a router's is never cleared"
        assert all(rank["clear_all_calls"] == 0 for rank in shard.state()["ranks"])
    said = f"target rank-1: cleared what a prober that was killed had left in unix://{tmp_path}/shard-0: batch {OURS}"
    assert caplog.messages == [said]


def test_what_is_owed_by_a_living_prober_is_not_cleared(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard")) as shard:
        left_by_a_killed_prober(shard, OURS)
        with taken(shard.addresses[0]):
            prober_of(shard).connect(5.0)
            assert batches(shard) == [[OURS]]


def test_after_a_restart_of_the_server_nothing_is_owed_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard", ranks=2)) as shard:
        left_by_a_killed_prober(shard, OURS)
        shard.restart()
        prober = prober_of(shard)
        prober.connect(5.0)
        assert not any(served.method == "ClearCache" for served in shard.record())
        with taken(shard.addresses[0]) as lock:
            assert lock.uncleared == ()
        prober.close()
    assert caplog.messages == []


def test_another_owner_or_mode_of_the_socket_is_no_restart(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard")) as shard:
        prober = prober_of(shard)
        before = prober.connect(5.0)
        os.chmod(tmp_path / "shard-0", 0o777)
        assert prober.connect(5.0) == before
        prober.close()


def test_what_cannot_be_cleared_at_the_end_stays_written_down_for_the_next_prober(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard", ranks=2)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        shard.fault(Fault("internal", method="ClearCache"))
        with pytest.raises(Abandoned):
            prober.probe(workload(), 1, lambda: True)
        with pytest.raises(Failure):
            prober.close()
        [[owed], _] = batches(shard)
        shard.fault(None)
        with taken(shard.addresses[0]) as lock:
            assert lock.uncleared == (owed,)
        prober_of(shard).connect(5.0)
        assert batches(shard) == [[], []]
