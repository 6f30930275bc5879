# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Keeps a second run out of a run folder.

The first process of a run locks `run.lock` exclusively before it writes anything, and holds the lock until the run
ends. The file names the holder, and is empty between two runs. The kernel releases the lock when its holder ends, for
whatever reason. So the file that a killed run leaves blocks no other run.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from errno import EACCES, EAGAIN
from pathlib import Path

from .peers import Peers

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = "run.lock"
PATIENCE = 5.0  # seconds to wait, since a holder that was just killed may still be ending

_held: dict[int, Path] = {}  # the locks of this process: file descriptor to path


def _leave_to_parent() -> None:
    """Closes the locks in a forked child. Otherwise the child would hold them as long as it lives."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


@contextmanager
def exclusive(output: Path, peers: Peers) -> Iterator[None]:
    """Lets the first process hold the lock of a run folder. It makes the folder if there is none.

    Raises:
        ValueError: in all processes, if another run holds the lock or the folder is not writable.
    """
    lock, refusal = None, None
    if peers.is_first:
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock = acquire(output)
        except ValueError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"output_dir={str(output)!r} must be a folder that can be written to ({error})."
    refusal = peers.broadcast(refusal)
    if refusal is not None:
        raise ValueError(refusal)
    try:
        yield
    finally:
        if lock is not None:
            release(lock)


def acquire(output: Path, argument: str = "output_dir") -> int:
    """Locks the lock file and returns its file descriptor. On a file system without locks it only warns.

    Args:
        argument: the name of the caller's argument for the folder, for messages.

    Raises:
        ValueError: if another process, or another run in this process, holds the lock.
    """
    lock = os.open(output / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    _held[lock] = output / NAME
    deadline = time.monotonic() + PATIENCE
    while (state := _try_to_lock(lock)) == "held":
        if time.monotonic() > deadline:
            holder = os.read(lock, 1000).decode(errors="replace").strip() or "another process"
            _close(lock)
            raise ValueError(
                f"{argument}={str(output)!r} is in use by {holder}: wait for that run or end it, or choose another "
                f"{argument}."
            )
        time.sleep(0.05)
    if state != "locked":
        logger.warning("%s: this folder is not locked, and a second run could write to it: %s", output, state)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on host {socket.gethostname()} since {now} (UTC)\n".encode())
    return lock


def check_held(output: Path) -> None:
    """Raises an OSError if the lock file that this process holds was removed. A second run may then use the folder."""
    for lock, path in _held.items():
        try:
            kept = path != output / NAME or os.path.samestat(os.fstat(lock), path.stat())
        except FileNotFoundError:
            kept = False
        if not kept:
            raise OSError(f"the lock file {path} was removed: another run may use this folder")


def release(lock: int) -> None:
    with suppress(OSError):  # the disk may be gone, but the run has ended anyway
        os.ftruncate(lock, 0)
    _close(lock)


def _close(lock: int) -> None:
    _held.pop(lock, None)
    os.close(lock)


def _try_to_lock(lock: int) -> str:
    """Returns "locked", "held" if another process holds the lock, or the reason why locking is impossible."""
    if fcntl is None:
        return "this system has no fcntl"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "held" if error.errno in (EACCES, EAGAIN) else f"its file system has no locks ({error.strerror})"
    return "locked"
