# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Parses the command line of `radd serve`. It does not need the server's packages."""

import argparse
import re
from collections.abc import Sequence

from ..hub.convert import DTYPES
from ..jobs.batches import BATCH_TOKENS, BATCH_TOKENS_ON_A_GPU
from ..options import OneLineParser
from .batcher import GATHER, QUEUE
from .handler import Limits

MOST = 2**31 - 1  # the largest number of any option

EXAMPLES = """\
examples:
  radd serve checkpoints/radd-austen
  curl http://127.0.0.1:8000/generate -d '{"inputs": "It was [MASK:12] of spring", "parameters": {"seed": 1}}'

routes:
  POST /generate   {"inputs": a text with blanks, or {"prefix", "suffix", "length"}, or a list of these,
                    "parameters": settings of generate, num_return_sequences, seed,
                    "stream": true for drafts as server-sent events}  ->  {"outputs": samples, "seed": number}
  POST /           the same, as at an inference endpoint of the Hub
  GET  /health     whether the server answers requests
  GET  /info       the model, the parameters of a request, the limits
  GET  /metrics    counts and times in Prometheus' text format

The server needs the extra "serve": pip install 'radd_hf[serve]'.
"""


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = OneLineParser(
        prog="radd serve",
        description="Serves a model over HTTP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or repository of a RADD model")
    parser.usage = "radd serve MODEL [options]"
    parser.add_argument("--tokenizer", metavar="NAME", help="name or folder (default: the model's)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number format (default float32)")
    parser.add_argument("--device", metavar="NAME", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    where = parser.add_argument_group("address")
    where.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1, this machine alone)"
    )
    where.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port to listen at (default 8000; 0: a free one)"
    )
    where.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="another host name to accept; repeatable"
    )
    limits = parser.add_argument_group("limits")
    for name, default, text in (
        ("max-length", None, "the most tokens of a text (default: the length that the model was trained at)"),
        ("max-inputs", Limits().inputs, "the most texts of a request"),
        ("max-number", Limits().samples, "the most samples of a text, num_return_sequences"),
        ("max-steps", Limits().steps, "the most steps"),
        ("max-tokens", Limits().tokens, "the most tokens of a request, all samples together"),
        (
            "batch-tokens",
            None,
            f"the most tokens of a batch (default {BATCH_TOKENS} on a CPU, {BATCH_TOKENS_ON_A_GPU} on a GPU)",
        ),
        ("max-queue", QUEUE, "the most texts that wait; others are refused with status 429"),
    ):
        help = text if default is None else f"{text} (default {default})"
        limits.add_argument(f"--{name}", type=int, metavar="N", default=default, help=help)
    for name, seconds, text in (
        ("max-wait", 60.0, "the most seconds that a text waits for its batch; then it is refused with status 503"),
        ("gather", GATHER, "seconds without a new text after which a batch begins"),
        ("grace", 30.0, "seconds that running requests get after SIGTERM or Ctrl-C"),
    ):
        limits.add_argument(
            f"--{name}", type=float, metavar="SECONDS", default=seconds, help=f"{text} (default {seconds:g})"
        )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line. A wrong one ends the process with status 2."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        least, most = 0 if name in ("port", "gather", "grace") else 1, 2**16 - 1 if name == "port" else MOST
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and not least <= value <= most:
            parser.error(f"--{name.replace('_', '-')} {value} must be a number in {least} .. {most}.")
    if not re.fullmatch(r"[^\[\]\s]+|\[[^\[\]\s]+\]", args.host):
        parser.error(f"--host {args.host!r} must be a name or an address, such as 127.0.0.1 or [::1].")
    return args
