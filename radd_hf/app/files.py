# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the input of `radd generate` and `radd score`: standard input, the model, a file of texts."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from transformers.utils import logging

from ..endings import UsageError
from ..hub.loading import find_device, load, tokenizer_hash, weights_hash
from ..hub.runs import newest_model
from ..jobs.rows import RowsFile, check_rows_output
from ..processes import make_accelerator, on_main

# The most characters to read from standard input. Half of them are too many for a text.
MAX_INPUT = 2**21


@contextmanager
def usage() -> Iterator[None]:
    """Raises a ValueError of the block as a UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_model(args: argparse.Namespace) -> None:
    """Raises a UsageError if MODEL is empty or looks like a text."""
    if not args.model.strip():
        raise UsageError(f"MODEL {args.model!r} is empty: name the folder or repository of a model.")
    if any(sign in args.model for sign in (" ", "[MASK")) and not Path(args.model).exists():
        raise UsageError(f"MODEL {args.model[:60]!r} is no folder: name the model first, and then the text.")


def read_input(stdin: TextIO) -> str:
    """Returns the text of standard input without its last line break. Raises a ValueError if it cannot be decoded."""
    try:
        # A pipe may have no end. A text with this many characters is refused later.
        return stdin.read(MAX_INPUT).removesuffix("\n").removesuffix("\r").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not in {error.encoding}: {error}") from error


def load_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the model, ready to generate, and its tokenizer. If args.model is a run, it becomes a checkpoint."""
    with usage():
        device = find_device(args.device)
    args.model = newest_model(args.model)
    logging.disable_progress_bar()
    try:
        return load(args.model, args.tokenizer, device=device, dtype=getattr(torch, args.dtype))
    finally:
        if not HF_HUB_DISABLE_PROGRESS_BARS:  # the user's variable against all bars
            logging.enable_progress_bar()  # for `generate`


# ---------------------------------------------------------------------------------------------------------
# Files of rows
# ---------------------------------------------------------------------------------------------------------


def check_file_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser, for_one: Sequence[str]) -> None:
    """Raises a UsageError if --input and --output are not both given, or for an argument that is for one text."""
    for name, other in (("output", "input"), ("input", "output")):
        if getattr(args, name) is not None and getattr(args, other) is None:
            what = "the file of texts" if other == "input" else "the file to write"
            raise UsageError(f"--{name} {getattr(args, name)}: also pass --{other}, {what}.")
    for name in for_one:
        if getattr(args, name) != parser.get_default(name):
            flag = "TEXT" if name == "text" else f"--{name.replace('_', '-')}"
            instead = "pass --batch-tokens instead" if name == "batch_size" else "leave it out"
            raise UsageError(f"{flag} is not for a file of texts (--input {args.input}): {instead}.")
    if args.batch_tokens is not None and not 1 <= args.batch_tokens < 2**31:
        raise UsageError(f"--batch-tokens {args.batch_tokens} must be at least 1.")


def open_file(args: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the accelerator of this process and the input, which it reads once. args.output becomes a path."""
    with usage():
        if Path(args.output).resolve() == Path(args.input).resolve():
            raise ValueError(f"output={args.output!r} is the input itself: name another file.")
        args.output = check_rows_output("output", args.output)
        accelerator = make_accelerator()
        return accelerator, on_main(accelerator, lambda: RowsFile.examine("input", args.input, args.output))


def load_for_file(args: argparse.Namespace, accelerator: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the model, the tokenizer, and the facts about them and the computation that results depend on."""
    args.model = on_main(accelerator, lambda: newest_model(args.model))  # the same checkpoint in all processes
    if accelerator.num_processes > 1:
        if args.device is not None:
            raise UsageError(f"--device {args.device}: each process of a launcher has its own device; leave it out.")
        args.device = str(accelerator.device)
    model, tokenizer = load_model(args)
    identity = {
        "command": f"radd {args.command}",
        "weights": weights_hash(model),
        "tokenizer": tokenizer_hash(tokenizer),
        "dtype": args.dtype,
        "device": model.device.type,
    }
    return model, tokenizer, identity
