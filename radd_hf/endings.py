# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Ends commands and scripts: with one line and a meaningful exit status.

    0    done
    1    it could not be done; the reason is one line on standard error
    2    the command line is at fault; likewise
    130  interrupted
    143  ended by SIGTERM, where it is heard: a training saves first; 128 + n is the end by signal n in general

It imports the standard library alone, since the command `radd` runs this file before torch is loaded.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

# What a terminal obeys, or a reader cannot see and is misled by: control characters of both sets, line and paragraph
# separators, bidirectional controls; and lone surrogates, which no stream can write.
INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UsageError(Exception):
    """The command line is at fault: exit status 2."""

    exit_status = 2


class Stopped(BaseException):
    """A signal ends the program: exit status 128 + n. The message is the line that it ends with; empty: none."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def visible(text: str, keep: str = "") -> str:
    """Returns text from outside as a terminal may show it: in one line, control characters as escapes, `\\u001b`.

    The text of all scripts stays as it is. The escapes are those of JSON, so that a line of JSON stays what it was.

    Args:
        keep: characters to leave, such as the line breaks of a text.
    """
    return INVISIBLE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_program(main: Callable[[list[str]], object], name: str) -> NoReturn:
    """Runs a `main` on the command line of the process, of which `--debug` is taken, and ends the process."""
    argv = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.exit(status_of(lambda: main(argv), name, debug="--debug" in sys.argv[1:]))


def status_of(run: Callable[[], object], name: str, debug: bool = False) -> int:
    """Runs a command and returns its exit status; a failure is one line, or with `debug` its traceback."""
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
    except BrokenPipeError:  # whoever read our output has seen enough; nor may the interpreter try to flush it
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
    # A class of the command line, which runs this file by itself, is another than that of the package.
    if hasattr(error, "exit_status") or isinstance(error, (ValueError, OSError, ArithmeticError)):
        return reason or type(error).__name__
    return f"{type(error).__name__}: {reason} (--debug shows where)"
