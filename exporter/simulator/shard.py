"""The simulated shard: one gRPC server per rank, each with a single thread for all calls, also Health and Info."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import grpc

from exporter.simulator import lies, messages
from exporter.simulator.batch_cache import Crash
from exporter.simulator.faults import SHARD_FAULT_KINDS, FailedByCommand, Fault, FaultKind
from exporter.simulator.listen_errors import cannot_listen
from exporter.simulator.options import Config, host_and_port
from exporter.simulator.rank import Rank, RankAnswer, RankBarrier, ServerStopping
from exporter.simulator.record import Record, ServedCall

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would share its connections, silently.
    ("grpc.so_reuseport", 0),
)
# Seconds for the calls in flight to be answered CANCELLED, which takes none while this machine is not busy: a stop
# without grace drops the connection, and then some of them end UNAVAILABLE.
_GRACE = 10.0
_LAUNCHER_NOTICES = 0.1  # seconds until a dead rank takes the others along


@dataclass(frozen=True)
class _Running:
    """One life of the server, between two starts."""

    ranks: list[Rank]
    servers: list[grpc.Server]
    barrier: RankBarrier


class Shard:
    """A simulated shard in this process: `with Shard(Config()) as shard: ... shard.addresses`.

    `died` says which fatal error ended it, or None. The methods may be called from any thread.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.addresses: list[str] = []
        self.died: str | None = None
        self.restarts = 0
        self._roofline = config.roofline
        self._record: Record[ServedCall] = Record(config.record_limit, config.record)
        self._fault: Fault | None = None
        self._lock = threading.RLock()
        self._dead = threading.Event()
        self._stopped = threading.Event()
        self._running: _Running | None = None
        self.left = 0

    def start(self) -> Self:
        """Listen on every rank's address; OSError if one is taken."""
        with self._lock:
            self._open()
        return self

    def stop(self) -> int:
        """Stop now, cancelling what runs; answers `left`, how many batches were left in the cache of any rank."""
        self._stopped.set()
        with self._lock:
            self._close()
            self._record.close()
        return self.left

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_dead(self, timeout: float) -> bool:
        """Whether a fatal error ended it, on all ranks, within `timeout` seconds."""
        return self._dead.wait(timeout)

    def record(self) -> list[ServedCall]:
        """The newest served calls, oldest first."""
        return self._record.newest()

    def state(self) -> dict[str, Any]:
        """What GET /state shows: JSON values only. Counts are since the last (re)start."""
        with self._lock:
            ranks = self._running.ranks if self._running else []
            places = zip(ranks, self.addresses, strict=True) if ranks else ()
            return {
                "protocol": self.config.protocol,
                "attention": self.config.attention,
                "alive": bool(ranks) and self.died is None,
                "died": self.died,
                "slowdown": self._roofline.slowdown,
                "restarts": self.restarts,
                "ranks": [_rank_state(rank, address) for rank, address in places],
            }

    def slow_down(self, factor: float) -> None:
        """Stretch every later pass, prefill and decode, to `factor` times what the roofline says."""
        with self._lock:
            self._roofline = self._roofline.slowed(factor)
            for rank in self._running.ranks if self._running else []:
                rank.roofline = self._roofline

    @property
    def fault_kinds(self) -> tuple[FaultKind, ...]:
        return SHARD_FAULT_KINDS

    def fault(self, fault: Fault | None) -> None:
        """Let calls fail or hang; None ends it. ValueError for what only a router can do."""
        if fault and fault.kind == "cut":
            raise ValueError("kind: a shard has no streams to cut")
        with self._lock:
            self._fault = fault
            for rank in self._running.ranks if self._running else []:
                rank.faults.set(self._fault_of(rank.index))

    def _fault_of(self, rank: int) -> Fault | None:
        return self._fault if self._fault is not None and self._fault.rank in (None, rank) else None

    def restart(self, seconds: float = 0.0) -> None:
        """Go away for `seconds` and come back on the same addresses without a batch or a fault, as a new process."""
        with self._lock:
            self._close()
            self._fault = None
        self._stopped.wait(seconds)
        with self._lock:
            if not self._stopped.is_set() and self.died is None and self._running is None:
                self.restarts += 1
                self._open()

    def _open(self) -> None:
        barrier = RankBarrier(self.config.ranks, self.config.rank_timeout)
        running = _Running([], [], barrier)
        try:
            for index in range(self.config.ranks):
                rank = Rank(index, self.config, barrier)
                rank.roofline = self._roofline
                rank.faults.set(self._fault_of(index))
                pool = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"rank-{index}")
                server = grpc.server(pool, options=_OPTIONS)
                server.add_generic_rpc_handlers((_Service(self, rank),))
                self._bind(server, index)
                running.ranks.append(rank)
                running.servers.append(server)
        except OSError:
            for server in running.servers:
                server.stop(None).wait()
            raise
        for rank, server in zip(running.ranks, running.servers, strict=True):
            rank.urls = self.addresses
            server.start()
        self._running = running

    def _bind(self, server: grpc.Server, index: int) -> None:
        """Bind rank `index`, to where it was before if this is a restart."""
        wanted = self.addresses[index] if index < len(self.addresses) else _address_of(self.config.listen, index)
        if wanted.startswith("unix:"):
            _refuse_used_socket(wanted)
        try:
            port = server.add_insecure_port(wanted)
        except RuntimeError:
            raise cannot_listen(wanted) from None
        if index >= len(self.addresses):
            self.addresses.append(wanted if wanted.startswith("unix:") else f"{wanted.rpartition(':')[0]}:{port}")

    def _close(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        self.left = len({batch_id for rank in running.ranks for batch_id in rank.batches.kept})
        for rank in running.ranks:
            rank.stopping.set()
        running.barrier.abandon()
        for stopped in [server.stop(_GRACE) for server in running.servers]:
            stopped.wait()
        for address in self.addresses:
            if address.startswith("unix:"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_path_of(address))

    def _die(self, rank: Rank, reason: str) -> None:
        """End one rank, and then, as the launcher does, the others. Its error reply has been sent by now."""
        with self._lock:
            if self._running is None or rank not in self._running.ranks:
                return
            first = self.died is None
            self.died = self.died or reason
            rank.stopping.set()
            self._running.servers[rank.index].stop(_GRACE)
        if first:
            time.sleep(_LAUNCHER_NOTICES)
            with self._lock:
                self._close()
            self._dead.set()


class _Service(grpc.GenericRpcHandler):
    """The calls of one rank, under the names of the one protocol it speaks."""

    def __init__(self, shard: Shard, rank: Rank) -> None:
        self._shard = shard
        self._rank = rank
        self._wire: Any = messages.module_of(shard.config.protocol)
        prefix = f"/generate.{shard.config.protocol}.TextGenerationService/"
        self._methods = {prefix + method: method for method in messages.METHODS}
        self._doomed = False

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        self._rank.received[method] += 1
        return grpc.unary_unary_rpc_method_handler(
            partial(self._serve, method, time.perf_counter_ns()),
            request_deserializer=getattr(self._wire, f"{method}Request").FromString,
            response_serializer=lambda answer: answer if isinstance(answer, bytes) else answer.SerializeToString(),
        )

    def _serve(self, method: str, received_ns: int, request: Any, context: grpc.ServicerContext) -> Any:
        started_ns = time.perf_counter_ns()
        code, answer = "OK", RankAnswer(None)
        try:
            if self._doomed or self._rank.stopping.is_set() or not _wanted(context):
                code = "NOT_RUN"
                context.abort(grpc.StatusCode.CANCELLED, "The call ended before its turn came")
            self._rank.calls[method] += 1
            with self._failures(context):
                fault = self._rank.meet_fault(method, request)
                if fault is not None and fault.kind == "endless":
                    self._rank.batches.prolong()
                answer = self._rank.answer(method, request)
            return answer.response if fault is None else lies.of_shard(fault.kind, answer.response)
        except Exception:
            code = code if code == "NOT_RUN" else _code_of(context)
            raise
        finally:
            batch_id, size = messages.batch_of(method, request)
            timings = (answer.forward_ns, answer.decode_ns, answer.total_ns)
            instants = (received_ns, started_ns, time.perf_counter_ns())
            self._shard._record.add(
                ServedCall(
                    self._rank.index,
                    method,
                    code,
                    batch_id,
                    size,
                    answer.tokens,
                    *instants,
                    *timings,
                    text_tokens=answer.text_tokens,
                )
            )

    @contextlib.contextmanager
    def _failures(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Turn what goes wrong in a call into its status; a RuntimeError also ends the server."""
        try:
            yield
        except FailedByCommand as error:
            context.abort(error.code, str(error))
        except ServerStopping:
            context.abort(grpc.StatusCode.CANCELLED, "The server stops")
        except RuntimeError as error:
            if self._rank.stopping.is_set():
                context.abort(grpc.StatusCode.CANCELLED, "The server stops")
            if isinstance(error, Crash):
                self._crash(str(error))
                context.abort(grpc.StatusCode.CANCELLED, "This goes nowhere: the connection is gone")
            self._end(str(error), context)
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        except Exception as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))

    def _end(self, reason: str, context: grpc.ServicerContext) -> None:
        """Die once the error reply is out."""
        self._doomed = True
        death = threading.Thread(target=self._shard._die, args=(self._rank, reason), daemon=True)
        if not context.add_callback(death.start):
            death.start()

    def _crash(self, reason: str) -> None:
        """End as a process that is killed: connections first, so that no answer gets out."""
        self._doomed = True
        self._rank.stopping.set()
        drop_connections(self._shard.addresses[self._rank.index])
        threading.Thread(target=self._shard._die, args=(self._rank, reason), daemon=True).start()


def _wanted(context: Any) -> bool:
    """Whether the caller still waits: not cancelled, not past its deadline (None without one, which stubs forget)."""
    remaining = context.time_remaining()
    return bool(context.is_active() and (remaining is None or remaining > 0))


def _code_of(context: Any) -> str:
    """The status an abort has set, as its name."""
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "INTERNAL"


def _rank_state(rank: Rank, address: str) -> dict[str, Any]:
    batches = list(rank.batches.kept.values())
    return {
        "rank": rank.index,
        "address": address,
        "alive": not rank.stopping.is_set(),
        "batches": [
            {
                "id": batch.id,
                "size": batch.size,
                "request_ids": [sequence.prompt.request_id for sequence in batch.sequences],
                "tokens": sum(sequence.context for sequence in batch.sequences),
            }
            for batch in batches
        ],
        "received": dict(rank.received),
        "calls": dict(rank.calls),
        "clear_all_calls": rank.batches.clear_all_calls,
        "blocks_written": sorted(rank.batches.blocks_written),
    }


def drop_connections(address: str) -> None:
    """Shut every connection that was accepted at this address, as the kernel does when a process ends.

    A grpc server can only cancel its calls, so its sockets are looked for among the open files. They are used as they
    are: of a duplicate, grpc would go on to get events after it has closed its own.
    """
    for number in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):
            found = socket.socket(fileno=number)
            try:
                listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if not listens and _is_at(found.getsockname(), address):
                    found.shutdown(socket.SHUT_RDWR)
            finally:
                found.detach()


def _is_at(name: Any, address: str) -> bool:
    """Whether a socket's own name is this address; one that connected has none, or another."""
    if address.startswith("unix:"):
        return isinstance(name, str) and bool(name) and _path_of(name) == _path_of(address)
    return isinstance(name, tuple) and name[1] == host_and_port(address)[1]


def _address_of(listen: str, index: int) -> str:
    if listen.startswith("unix:"):
        return f"unix://{_path_of(listen)}-{index}"
    host, port = host_and_port(listen)
    return f"{host}:{port + index if port else 0}"


def _path_of(address: str) -> str:
    """The absolute path of unix:path or unix:///path."""
    path = address.removeprefix("unix:")
    return os.path.abspath(path.removeprefix("//"))


def _refuse_used_socket(address: str) -> None:
    """grpc takes over a socket file without asking, be it a live server's."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(_path_of(address))
        except OSError:
            return
    raise OSError(f"cannot listen on {address}: another server does")
