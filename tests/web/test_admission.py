"""Which requests wait at the server's admission, in virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from exporter.web.admission import MAX_PAGES, PACE_BURST, Admission

STEPS = 20  # of the event loop: more than any task here needs until it waits


class Client:
    sending_since: float | None = None

    def cut(self) -> None:
        raise AssertionError("nobody is slow here")


class Clients:
    """`now` stands still, so that after the burst nobody is admitted before `pass_time`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.admission = Admission(lambda: self.now, self._sleep)
        self._later = anyio.Event()
        self.answered: list[str] = []

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            await self._later.wait()

    async def pass_time(self) -> None:
        self.now += 10.0
        self._later.set()
        self._later = anyio.Event()
        await settled()

    async def ask(
        self, name: str, wants_page: bool = False, until: anyio.Event | None = None, has_token: bool = False
    ) -> None:
        async with self.admission.admitted(Client(), "address", wants_page, has_token):
            self.answered.append(name)
            if until is not None:
                await until.wait()


async def settled() -> None:
    for _ in range(STEPS):
        await checkpoint()


@asynccontextmanager
async def running(clients: Clients) -> AsyncIterator[TaskGroup]:
    """For tasks beside the admission."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clients.admission.run)
        yield tasks
        tasks.cancel_scope.cancel()


async def take_all_places(clients: Clients, tasks: TaskGroup, end: anyio.Event) -> None:
    """As many pages as may be made at once, until `end`."""
    for number in range(MAX_PAGES):
        tasks.start_soon(clients.ask, f"page {number}", True, end)
    await settled()


def test_who_leaves_while_waiting_is_taken_out_and_keeps_no_page() -> None:
    async def scene() -> None:
        clients = Clients()
        async with running(clients) as tasks:
            for number in range(PACE_BURST):
                tasks.start_soon(clients.ask, f"burst {number}")
            await settled()
            with anyio.CancelScope() as leaving:

                async def leave() -> None:
                    await settled()
                    assert len(clients.admission._queue) == 1
                    leaving.cancel()

                tasks.start_soon(leave)
                await clients.ask("left", True)
            assert len(clients.admission._queue) == 0
            end = anyio.Event()
            await clients.pass_time()
            await take_all_places(clients, tasks, end)
            assert clients.answered[PACE_BURST:] == [f"page {number}" for number in range(MAX_PAGES)]

    anyio.run(scene)


def test_an_action_does_not_wait_behind_a_page_from_the_same_address() -> None:
    async def scene() -> None:
        clients, end = Clients(), anyio.Event()
        async with running(clients) as tasks:
            await take_all_places(clients, tasks, end)
            tasks.start_soon(clients.ask, "waits", True)
            await settled()
            tasks.start_soon(clients.ask, "action")
            await settled()
            assert clients.answered[-1] == "action"
            assert len(clients.admission._queue) == 1

    anyio.run(scene)


def test_a_request_after_a_handshake_waits_for_a_place_only_and_takes_none_in_the_pace() -> None:
    async def scene() -> None:
        clients, end = Clients(), anyio.Event()
        async with running(clients) as tasks:
            await take_all_places(clients, tasks, end)
            tasks.start_soon(clients.ask, "after a handshake", True, None, True)
            await settled()
            assert len(clients.admission._queue) == 1
            end.set()
            await settled()
            assert clients.answered[-1] == "after a handshake"
            for number in range(PACE_BURST - MAX_PAGES):
                tasks.start_soon(clients.ask, f"rest of the burst {number}")
            await settled()
            assert len(clients.admission._queue) == 0
            tasks.start_soon(clients.ask, "one more")
            tasks.start_soon(clients.ask, "another one after a handshake", True, None, True)
            await settled()
            assert clients.answered[-1] == "another one after a handshake"
            assert len(clients.admission._queue) == 1

    anyio.run(scene)
