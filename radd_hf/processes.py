# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs a script in one process, or in those that a launcher such as `accelerate launch` starts."""

import gc
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import HfArgumentParser

# Timeout of the process group, long because the others wait while the first process tokenises.
GROUP_TIMEOUT = timedelta(hours=12)


def make_accelerator(**settings) -> Accelerator:
    """Makes an Accelerator; for several processes without a GPU it sets `cpu`, which Accelerate does not do by itself.

    Raises:
        ValueError: if a launcher started more processes than Accelerate finds, since each would work alone.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    accelerator = Accelerator(
        cpu=launched > 1 and not torch.accelerator.is_available() and not by_deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=GROUP_TIMEOUT)],
        **settings,
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"WORLD_SIZE={launched}, but Accelerate runs {accelerator.num_processes} processes: each would work alone."
        )
    return accelerator


def on_terminal(accelerator: Accelerator) -> bool:
    """Tells whether this process shows its progress: the first one, if its stderr is a terminal."""
    return accelerator.is_main_process and sys.stderr.isatty()


def silence_progress_bars(accelerator: Accelerator) -> None:
    """Turns off the progress bars of datasets and transformers, except in the first process on a terminal."""
    if not on_terminal(accelerator):
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def script_parser(doc: str | None, *kinds: type, epilog: str | None = None) -> HfArgumentParser:
    """Makes the parser of a script: fields of dataclasses are its flags, the first line of `doc` describes it."""
    description = (doc or "").split("\n")[0]
    return HfArgumentParser(cast(Any, list(kinds)), description=description, epilog=epilog, allow_abbrev=False)


def run_script(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs the `main` of a script on its command line, alone or as one of a launcher's processes.

    It records a failure, so that a launcher of several processes can print its reason.
    """
    record(main)(sys.argv[1:] if argv is None else argv)
    if torch.distributed.is_initialized():  # gloo may abort a process that exits before its group is destroyed
        gc.collect()  # frees the model, which holds the group
        torch.distributed.destroy_process_group()
