"""A thread for work that may take any time: the thread that reads answers must not wait for it."""

import threading
from collections.abc import Callable

LONG_AGO = float("-inf")
# The longest wait of `close`.
CLOSE_SECONDS = 0.2


class OnDemandThread:
    """Does one job each time it is woken. The thread starts with the first time."""

    def __init__(self, name: str, job: Callable[[], None], end: Callable[[], None] = lambda: None) -> None:
        """`end` is called after `close`: in the thread, or in `close` where there is no thread."""
        self._job, self._end = job, end
        self._woken, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._error: Exception | None = None

    def wake(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._woken.set()

    def error(self) -> Exception | None:
        """The newest error since the last call."""
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """The thread ends within a moment, or when the connection that it opens has failed."""
        self._closing.set()
        self._woken.set()
        if self._thread.ident is None:
            self._end()
        else:
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while self._woken.wait():
            self._woken.clear()
            if self._closing.is_set():
                break
            try:
                self._job()
            except Exception as error:  # a Failure, or a bug: for the thread that woke this one
                self._error = error
        self._end()
