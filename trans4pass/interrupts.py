"""Ctrl-C, SIGTERM and SIGUSR1 (preemption): remembered when they come, acted on where all ranks can stop together."""

import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from trans4pass import dist
from trans4pass.errors import UserError

T = TypeVar("T")

REQUEUE = 75  # EX_TEMPFAIL: the run wants to be started again
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal asked the run to stop.

    Attributes:
        exit_status: 130 after Ctrl-C, as shells have it; 75 after a preemption, for schedulers that requeue.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_status = 128 + signal.SIGINT if number == signal.SIGINT else REQUEUE


class OtherRankFailed(UserError):
    """This rank could go on, another one cannot."""


class Interrupts:
    """Notes signals while entered; whoever has long work to do asks it at short intervals whether to stop.

    A second Ctrl-C stops at once. The death of torchrun counts as SIGTERM: a signal that it does not forward (SIGUSR1,
    unless --signals-to-handle names it) ends it and leaves its processes behind.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, Interrupted):
            return  # what ends other ranks, or comes twice, must not change the exit status any more
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number is not None:
            raise KeyboardInterrupt
        self.number = number

    def check(self, failed: bool = False) -> None:
        """Stop on every rank where a signal came to any, or where another rank calls it with `failed`.

        Every rank must call it equally often.

        Raises:
            Interrupted: a signal came.
            OtherRankFailed: none came, and this rank has not failed.
        """
        if self._torchrun not in (None, os.getppid()):
            self.number = self.number or signal.SIGTERM
        number, any_failed = dist.largest([self.number or 0, failed])
        if number:
            raise Interrupted(int(number))
        if any_failed and not failed:
            raise OtherRankFailed("another process of this run cannot go on; what it printed says why")

    def check_locally(self) -> None:
        """As `check`, for this rank's signals only, where ranks do not work in step and nothing is to be kept."""
        if self.number is not None:
            raise Interrupted(self.number)

    def between(self, items: Iterable[T], rounds: int) -> Iterator[T]:
        """This rank's items, with a `check` before each and one at the end.

        `rounds`, the same on every rank, is the number of items or more: a rank that has fewer checks as often as the
        others. What iterating over `items` raises stops all ranks; nobody may leave the loop otherwise.
        """
        iterator = iter(items)
        for _ in range(rounds):
            self.check()
            try:
                item = next(iterator)
            except StopIteration:
                continue
            except Exception:
                self.check(failed=True)
                raise
            yield item
        self.check()
