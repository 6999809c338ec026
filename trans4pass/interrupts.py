"""Ctrl-C, SIGTERM and SIGUSR1 (preemption): remembered when they come, acted on between two steps."""

import signal
from types import FrameType

from trans4pass import dist

REQUEUE = 75  # EX_TEMPFAIL: the run is saved and wants to be started again
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal asked the run to stop; what must be kept is saved."""

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name}: stopped")
        self.number = number

    @property
    def exit_status(self) -> int:
        """130 after Ctrl-C, as shells have it; 75 after a preemption, for schedulers that requeue."""
        return 128 + signal.SIGINT if self.number == signal.SIGINT else REQUEUE


class Interrupts:
    """While entered, the first signal is noted and the second one of Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number is not None:
            raise KeyboardInterrupt
        self.number = number

    def check(self, device: object = "cpu") -> None:
        """Raise `Interrupted` on every rank if a signal came to any; every rank must call it."""
        if dist.any_(self.number is not None, device):
            raise Interrupted(self.number or signal.SIGTERM)

    def check_alone(self) -> None:
        """As `check`, where ranks do not run in step: in several processes it waits for the next `check`."""
        if not dist.active() and self.number is not None:
            raise Interrupted(self.number)
