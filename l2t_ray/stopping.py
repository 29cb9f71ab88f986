"""Ctrl-C and SIGTERM as a request: the round in progress ends, it is saved, and the run says how to go on.

Before the first round and after the last one there is nothing to bring to an end: there a signal interrupts at once,
and so does a second one.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody has asked the run to stop.

    Args:
        say: told, from a thread of its own, that the request was heard.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._is_asked = self._is_training = False

    def is_asked(self) -> bool:
        return self._is_asked

    def rounds_began(self) -> None:
        self._is_training = True

    def rounds_ended(self) -> None:
        self._is_training = False

    def listen(self) -> None:
        """Takes the signals, which only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._is_asked or not self._is_training:
            raise KeyboardInterrupt
        self._is_asked = True
        # Not from here: what the signal interrupted may be writing to the same screen.
        text = "stopping after this round; Ctrl-C again ends at once"
        threading.Thread(target=self._say, args=(text,), daemon=True).start()


@contextmanager
def listening(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """A request that hears this process's signals within the block; afterwards they go where they went before."""
    request = StopRequest(say)
    is_main = threading.current_thread() is threading.main_thread()
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    request.listen()
    try:
        yield request
    finally:
        if is_main:
            for number, handler in before.items():
                signal.signal(number, handler)
