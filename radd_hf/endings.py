# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Ends commands and scripts with one line and a meaningful exit status.

    0    success
    1    failure; one line on standard error gives the reason
    2    error in the command line; one line on standard error gives the reason
    130  interrupted by Ctrl-C
    143  stopped by SIGTERM, if the program handles it; 128 + n: stopped by signal n

It imports only the standard library, because the command `radd` runs this file before torch is loaded.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

# Characters that control a terminal or mislead a reader: control characters of both sets, line and paragraph
# separators, bidirectional controls, and lone surrogates, which no stream can write.
INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UsageError(Exception):
    """Says that the command line is wrong. The exit status is 2."""

    exit_status = 2


class Stopped(BaseException):
    """Says that a signal ends the program. The exit status is 128 + n; the message is the last line, if not empty."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def visible(text: str, keep: str = "") -> str:
    """Returns untrusted text so that a terminal can show it: in one line, with control characters as `\\u001b`.

    Letters of all scripts stay. The escapes are those of JSON, so a line of JSON keeps its meaning.

    Args:
        keep: characters to leave, such as the line breaks of a text.
    """
    return INVISIBLE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_program(main: Callable[[list[str]], object], name: str) -> NoReturn:
    """Runs a `main` on the command line of the process, without `--debug`, and ends the process."""
    argv = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.exit(status_of(lambda: main(argv), name, debug="--debug" in sys.argv[1:]))


def status_of(run: Callable[[], object], name: str, debug: bool = False) -> int:
    """Runs a command and returns its exit status. A failure prints one line; with `debug` it is raised."""
    try:
        run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        note(f"{name}: interrupted")
        return 130
    except Stopped as stop:
        if str(stop):
            note(f"{name}: {stop}")
        return stop.exit_status
    except BrokenPipeError:  # the reader of our output has closed it; the interpreter must not flush it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        note(f"{name}: error: {reason_of(error)}")
        return getattr(error, "exit_status", 1)
    return 0


def reason_of(error: BaseException) -> str:
    """Returns the error as one line. For an unexpected error the line says how to see the traceback."""
    reason = " ".join([str(error), *getattr(error, "__notes__", ())])
    reason = visible(" ".join(reason.split()))
    # The command line runs this file by itself, so its classes differ from the package's; they share `exit_status`.
    if hasattr(error, "exit_status") or isinstance(error, (ValueError, OSError, ArithmeticError)):
        return reason or type(error).__name__
    return f"{type(error).__name__}: {reason} (--debug shows where)"
