"""Writes to one SQLite file for many callers at once: one thread, one connection, one commit for all who wait.

A commit waits for the disk.  While it does, others queue; the next commit takes all of them.  Nobody is made to wait
for company: a lone caller is committed at once.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar, cast

import apsw

T = TypeVar("T")

GATHER_NS: Final = 2_000_000  # how long one transaction takes in more operations before it commits


class CommitFailed(Exception):
    """Nothing of this operation was written.  The cause says why."""


class Job(NamedTuple):
    """One operation and who waits for it."""

    run: Callable[[], object]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[object]


class Done(NamedTuple):
    """One operation and what came of it."""

    job: Job
    result: object
    error: BaseException | None


class Commits:
    """Runs operations in the order they came.  Each is all or nothing, and is on disk before its caller goes on.

    begun: called at the start of each transaction; what it raises fails the operations of that transaction.
    """

    def __init__(self, connection: apsw.Connection, name: str, begun: Callable[[], None]) -> None:
        self.commits = 0
        self._connection = connection
        self._begun = begun
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, operation: Callable[[], T]) -> T:
        """Raises what the operation raised, or CommitFailed.  Once begun it is not undone by a cancelled caller."""
        loop = asyncio.get_running_loop()
        job = Job(operation, loop, loop.create_future())
        with self._lock:
            if self._closed:
                raise CommitFailed("it is closed")
            self._queue.put(job)
        return cast(T, await job.answer)

    def close(self) -> None:
        """Finishes what was asked, then ends the thread.  Blocks."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            done: list[Done] = []
            try:
                self._transact(job, done)
            except Exception as error:  # of BEGIN, COMMIT, or a disk that ends the transaction: told to every caller
                self._roll_back()
                failed = CommitFailed(f"{type(error).__name__}: {error}")
                failed.__cause__ = error
                done = [Done(one.job, None, one.error or failed) for one in done] or [Done(job, None, failed)]
            _deliver(done)
            if self._closed and self._queue.empty():  # the end of the queue was taken with the last jobs
                return

    def _transact(self, job: Job, done: list[Done]) -> None:
        """One transaction.  Each job it takes is in `done` before it is run."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        until = time.perf_counter_ns() + GATHER_NS
        following: Job | None = job
        done.append(Done(job, None, None))
        self._begun()
        while following is not None:
            done[-1] = Done(following, *self._attempt(following))
            if time.perf_counter_ns() > until:
                break
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is not None:
                done.append(Done(following, None, None))
        run("COMMIT")
        self.commits += 1

    def _attempt(self, job: Job) -> tuple[object, BaseException | None]:
        run = self._connection.execute
        run("SAVEPOINT operation")
        try:
            result = job.run()
        except Exception as error:
            if not self._connection.in_transaction:  # a full or failing disk has rolled back all of it already
                raise
            run("ROLLBACK TO operation")
            run("RELEASE operation")
            return None, error
        run("RELEASE operation")
        return result, None

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _deliver(done: list[Done]) -> None:
    loops = {one.job.loop for one in done}
    for loop in loops:
        mine = [one for one in done if one.job.loop is loop]
        try:
            loop.call_soon_threadsafe(_resolve, mine)
        except RuntimeError:
            if not loop.is_closed():  # a loop that is gone has nobody left who waits
                raise


def _resolve(done: list[Done]) -> None:
    for one in done:
        if one.job.answer.done():  # its caller was cancelled
            continue
        if one.error is not None:
            one.job.answer.set_exception(one.error)
        else:
            one.job.answer.set_result(one.result)
