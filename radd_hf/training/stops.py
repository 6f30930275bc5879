# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Ends a run, or makes it save, when a signal asks for it. All processes do so after the same step.

    SIGTERM, SIGINT    save at the end of the current step, and end with status 128 + the signal's number
    the same again     end at once
    SIGUSR1            save at the end of the current step, and continue
    a lost launcher    like SIGTERM

Before training begins there is nothing to save, and a signal ends the run at once. A signal also interrupts an
evaluation or a sampling; a restart repeats it.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..endings import Stopped, note
from .peers import Peers

STOPS = (signal.SIGINT, signal.SIGTERM)
SAVE = getattr(signal, "SIGUSR1", None)
# The processes agree on the largest of their wishes: nothing, to save, or an exit status 128 + n.
NOTHING, TO_SAVE = 0, 1
# A signal that comes this many seconds after the first one counts as a second request. Before that it may be a copy: a
# terminal signals the processes of a launcher directly, and the launcher forwards the same signal to them.
SECONDS_BETWEEN = 2.0
# Set by `torchrun` and `accelerate launch`, and by no other program.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION")

_listening: set["Stops"] = set()
_masks: list[set] = []  # the signal mask of the thread that forks


def _before_fork() -> None:
    """Blocks signals, since the child has its parent's handlers at first."""
    if hasattr(signal, "pthread_sigmask"):
        _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, STOPS))


def _after_fork() -> None:
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _in_child() -> None:
    """Restores the default handling of signals in a forked child, which must not act for its parent."""
    for stops in _listening:
        signal.set_wakeup_fd(-1)
        for number, handler in stops.before.items():
            signal.signal(number, handler)
    _listening.clear()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


class Stops:
    """Listens to signals inside a `with`. It does nothing outside the main thread, the only one that gets signals.

    Python runs a signal handler only after the current call returns, and that call may wait for another process. So a
    thread ends the process at a second signal; the interpreter wakes it at every signal. The thread also checks that
    the launcher still runs.

    Attributes:
        peers: the processes that this one agrees with, set as soon as they are known.
    """

    def __init__(self) -> None:
        self.peers: Peers | None = None
        self.status = 0  # 128 + n once a signal n has asked for the end
        self.saves_wanted = self.saves_agreed = 0  # numbers of requests
        self.at_once = True  # whether a stop is raised in the main thread as soon as the signal comes
        self.before: dict[int, Any] = {}  # the handlers to restore

    def __enter__(self) -> "Stops":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in filter(None, (*STOPS, SAVE)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # a background job of a shell ignores SIGINT
                self.before[number] = signal.signal(number, self._hear)
        self.parent = os.getppid() if any(name in os.environ for name in LAUNCHERS) else None
        self.bell, woken = socket.socketpair()
        woken.setblocking(False)
        self.woken = woken
        self.woken_before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        self.watch = threading.Thread(target=self._watch, name="stops", daemon=True)
        self.watch.start()
        _listening.add(self)
        return self

    def __exit__(self, *failure) -> None:
        if self not in _listening:
            return
        _listening.discard(self)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.woken_before)
        self.woken.setblocking(True)
        self.woken.send(b"\0")  # no signal has this number
        self.watch.join()
        self.bell.close()
        self.woken.close()

    def _hear(self, number: int, frame: Any) -> None:
        """Handles a signal. Python calls it in the main thread, between two instructions."""
        if number == SAVE:
            self.saves_wanted += 1
            return
        self.status = max(self.status, 128 + number)
        if self.at_once:
            self.at_once = False
            first = self.peers is None or self.peers.is_first
            raise Stopped(f"stopped by {name_of(self.status)} before a step was done" if first else "", self.status)

    def _watch(self) -> None:
        first = None
        while True:
            if not select.select([self.bell], [], [], 1.0)[0]:
                if self.parent is not None and os.getppid() != self.parent:
                    self.parent = None
                    os.kill(os.getpid(), signal.SIGTERM)
                continue
            for number in self.bell.recv(100):
                if number == 0:
                    return
                if number in STOPS:
                    first = first or time.monotonic()
                    if time.monotonic() - first > SECONDS_BETWEEN:
                        note(f"{Path(sys.argv[0]).name}: ended at once by a second {signal.Signals(number).name}")
                        os._exit(128 + number)

    def agree(self) -> int:
        """Returns the largest wish of all processes. All call it at the end of a step."""
        wanted = self.saves_wanted
        wish = self.status or (TO_SAVE if wanted > self.saves_agreed else NOTHING)
        self.saves_agreed = wanted
        return wish if self.peers is None else self.peers.largest(wish)

    def training_begins(self) -> None:
        """Marks the start of training. From now on a stop waits for the end of a step, except in `interruptible`."""
        self.at_once = False

    @contextmanager
    def interruptible(self, patiently: bool = False) -> Iterator[Callable[[], None]]:
        """Lets a stop interrupt the body of the `with` in all processes. All processes must enter it.

        Yields:
            A function that every process calls once, after its share of the work and before the shares are combined.
            In this call the processes agree whether to stop.

        Raises:
            Stopped: in all processes, if one of them was asked to stop.
        """
        met = False

        def meet() -> None:
            nonlocal met
            self.at_once, met = False, True
            if status := self.status if self.peers is None else self.peers.largest(self.status, patiently):
                raise Stopped("", status)

        try:
            self.at_once = True
            if self.status:
                raise Stopped("", self.status)
            yield meet
        except Stopped:
            self.at_once = False
            if not met:
                meet()  # the others are here, or will come
            raise
        finally:
            self.at_once = False


def name_of(status: int) -> str:
    return signal.Signals(status - 128).name
