# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The processes of a launcher, as Accelerate sees them."""

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

# The first process may tokenise for long while the others wait.
PATIENCE = timedelta(hours=12)


def make_accelerator(**settings) -> Accelerator:
    """Several processes without a GPU are processes on the CPU, which Accelerate wants to be told.

    Raises:
        ValueError: when a launcher started more processes than Accelerate knows of, since each would work alone.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    accelerator = Accelerator(
        cpu=launched > 1 and not torch.accelerator.is_available() and not by_deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        **settings,
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"WORLD_SIZE={launched}, but Accelerate runs {accelerator.num_processes} processes: each would work alone."
        )
    return accelerator


def on_terminal(accelerator: Accelerator) -> bool:
    """Whether this process shows how far it is: the first one, where somebody may watch."""
    return accelerator.is_main_process and sys.stderr.isatty()


def silence_libraries_elsewhere(accelerator: Accelerator) -> None:
    """No progress bars of datasets and transformers but on a terminal."""
    if not on_terminal(accelerator):
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def script_parser(doc: str | None, *kinds: type, epilog: str | None = None) -> HfArgumentParser:
    """The parser of a script: its settings are the fields of some dataclasses, `doc` begins with what it does."""
    description = (doc or "").split("\n")[0]
    return HfArgumentParser(cast(Any, list(kinds)), description=description, epilog=epilog, allow_abbrev=False)


def run_script(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs the `main` of a script on its command line, as one of the processes of a launcher or alone.

    A failure is recorded, so that the launcher of several processes ends with its reason, too.
    """
    record(main)(sys.argv[1:] if argv is None else argv)
    if torch.distributed.is_initialized():  # gloo may abort a process that leaves its group standing at exit
        gc.collect()  # the model, which holds on to the group
        torch.distributed.destroy_process_group()
