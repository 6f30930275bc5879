# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs a script in one process, or in the processes that a launcher such as `accelerate launch` starts."""

import argparse
import copy
import gc
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast_object_list
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .endings import status_of
from .options import OneLineParser

# How long a process waits for the others. It is long because the first one tokenises alone, and shares of work differ.
GROUP_TIMEOUT = timedelta(hours=12)

PRECISIONS = ("no", "bf16", "fp16")

T = TypeVar("T")


def launcher_setting(name: str, given: Any, variable: str, kind: Callable[[str], Any], unasked: tuple[str, ...]) -> Any:
    """Returns a setting of the script, or the launcher's value if the script was given none.

    Args:
        name, given: the script's argument and its value; None if it was not given.
        variable: environment variable with the launcher's value, from a flag of `accelerate launch` or its
            configuration.
        kind: converts the variable's text.
        unasked: values that the launcher or Accelerate sets by default; the script's own value then holds.

    Raises:
        ValueError: if both are given and differ, or if the variable's text cannot be converted.
    """
    text = os.environ.get(variable, unasked[0]).lower()
    if text in unasked:
        return given
    try:
        asked = kind(text)
    except ValueError:
        raise ValueError(f"{variable}={text!r} of the launcher is not a valid {name}.") from None
    if given is not None and given != asked:
        raise ValueError(
            f"{name}={given!r} must be {asked!r}, which the launcher was asked for ({variable}): leave out one of them."
        )
    return asked


def launched_precision(given: str | None) -> str:
    """Returns the precision that the script or the launcher sets, else "no".

    Raises:
        ValueError: if they contradict each other, or for a precision that the scripts do not support.
    """
    asked = launcher_setting("mixed_precision", given, "ACCELERATE_MIXED_PRECISION", str, ("no",))
    precision = "no" if asked is None else asked
    if precision not in PRECISIONS:
        raise ValueError(f"mixed_precision={precision!r} must be one of {PRECISIONS}.")
    return precision


def make_accelerator(accumulation: int = 1, timeout: timedelta = GROUP_TIMEOUT, **settings) -> Accelerator:
    """Makes an Accelerator with these settings only, whatever the launcher's variables say.

    Each process waits at most `timeout` for the others. Several processes without a GPU get `cpu`, which Accelerate
    does not set by itself.

    Raises:
        ValueError: if a launcher started more processes than Accelerate finds, because each would work alone; for fp16
            on a CPU, which Accelerate would ignore.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    accelerator = Accelerator(
        cpu=launched > 1 and not torch.accelerator.is_available() and not by_deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
        dynamo_backend="no",  # each script compiles by itself the parts that are worth it
        **settings,
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"WORLD_SIZE={launched}, but Accelerate runs {accelerator.num_processes} processes: each would work alone."
        )
    if settings.get("mixed_precision") == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision='fp16' needs a GPU: on a CPU it must be 'no' or 'bf16'.")
    return accelerator


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Runs `work` in the main process and returns its result in all processes. The others wait for it.

    Raises:
        OSError, ValueError: if `work` raises one. All processes raise it, so none waits for one that has ended.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except (OSError, ValueError) as raised:
            error = raised
    failed = None if error is None else ("ValueError" if isinstance(error, ValueError) else "OSError", str(error))
    result, failed = broadcast_object_list([result, failed])
    if error is not None:
        raise error
    if failed is not None:
        kind, reason = failed
        raise ValueError(reason) if kind == "ValueError" else OSError(reason)
    return cast(T, result)


def on_terminal(accelerator: Accelerator) -> bool:
    """Tells whether this process shows its progress. Only the first one does, if its standard error is a terminal."""
    return accelerator.is_main_process and sys.stderr.isatty()


def silence_progress_bars(accelerator: Accelerator) -> None:
    """Turns off the progress bars of datasets and transformers, except in the first process on a terminal."""
    if not on_terminal(accelerator):
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


class ScriptHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option in one spelling. It leaves out defaults that the help explains, and those that are None."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spelled = {option.replace("-", "_"): option for option in reversed(action.option_strings)}
        shown = copy.copy(action)
        shown.option_strings = list(reversed(spelled.values()))
        return super()._format_action_invocation(shown)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        metavars = {int: "N", float: "X", string_to_bool: "BOOL"}
        return metavars.get(cast(Any, action.type)) or super()._get_default_metavar_for_optional(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        explained = action.default is None or action.default is False or "default" in (action.help or "")
        return action.help if explained else super()._get_help_string(action)


class ScriptParser(OneLineParser, HfArgumentParser):
    """Parses settings into the fields of dataclasses. An unknown flag ends the script with status 2."""

    def add_argument(self, *names: Any, values: Sequence[str] = (), **settings: Any) -> Any:
        """Adds an argument. A switch without a value means true; HfArgumentParser allows this only for `bool`.

        Args:
            values: names that a shell completes. The script itself refuses others, because it knows what else is
                allowed.
        """
        if settings.get("type") is string_to_bool:
            settings = {"nargs": "?", "const": True} | settings
        action: Any = super().add_argument(*names, **settings)
        action.values = values
        return action

    def parse(self, argv: list[str]) -> tuple:
        """Returns an object of each dataclass."""
        *parsed, unknown = cast(tuple, self.parse_args_into_dataclasses(argv, return_remaining_strings=True))
        if unknown:
            self.error(f"unknown arguments: {' '.join(unknown)}")
        return tuple(parsed[: len(list(self.dataclass_types))])


def script_parser(doc: str | None, *kinds: type) -> ScriptParser:
    """Makes the parser of a script. The settings are the fields of dataclasses; `doc` begins with the description."""
    description = (doc or "").split("\n")[0]
    parser = ScriptParser(cast(Any, list(kinds)), description=description, formatter_class=ScriptHelp)
    required = [f"{action.option_strings[0]} {action.dest.upper()} " for action in parser._actions if action.required]
    parser.usage = f"%(prog)s {''.join(required)}[options]"
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")  # see status_of_script
    return parser


def run_script(main: Callable[[list[str]], None]) -> None:
    """Runs the `main` of a script on the command line of the process, and ends the process."""
    status = status_of_script(main, sys.argv[1:], Path(sys.argv[0]).name)
    if status and torch.distributed.is_initialized():  # leaving the group could wait for other failed processes
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def status_of_script(main: Callable[[list[str]], None], argv: list[str], name: str) -> int:
    """Runs the `main` of a script, alone or as one of the processes of a launcher; returns its exit status.

    A failure prints one line; `--debug` shows its traceback. `record` saves the failure, so a launcher of several
    processes also ends with the reason.
    """
    debug, sys.argv[0] = "--debug" in argv, name  # usage lines begin with it
    argv = [argument for argument in argv if argument != "--debug"]
    status = status_of(lambda: record(main)(argv), name, debug)
    together = status == 0 or status > 128  # all processes end in this way
    if together and torch.distributed.is_initialized():  # gloo may abort a process that leaves its group at exit
        gc.collect()  # frees the model, which holds a reference to the group
        torch.distributed.destroy_process_group()
    return status
