# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Kills a process before its n-th change of the file system."""

import os
import signal
import sys

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def watch_changes(output: str, last: int | None = None, everywhere: bool = False) -> list[str]:
    """Records from now on each change by this process in a list, and returns the list. Kills it before the `last`-th.

    Args:
        output: the path below which files are opened; names without a folder are relative to it.
        everywhere: also record what is renamed, made and removed at other paths.
    """
    changes, sync = list[str](), os.fsync

    def change(what: str) -> None:
        changes.append(what)
        if len(changes) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def look(event: str, given: tuple) -> None:
        if event in CHANGES and (everywhere or output in str(given[0]) or "/" not in str(given[0])):
            change(event)
        if event == "open" and output in str(given[0]) and given[2] & (os.O_WRONLY | os.O_RDWR):
            change(event)

    def counted_sync(descriptor: int) -> None:
        change("os.fsync")
        sync(descriptor)

    sys.addaudithook(look)
    os.fsync = counted_sync
    return changes
