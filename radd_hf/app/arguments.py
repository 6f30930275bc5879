# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The command line of the web page. It is parsed without gradio, which takes seconds to import or is not installed."""

import argparse
import os

from ..options import OneLineParser


def make_parser(model: str = "") -> OneLineParser:
    """Makes the parser of the page's command line. `model` is the default of --model."""
    parser = OneLineParser(description="Serves a web page on which a RADD model fills texts.")
    parser.add_argument(
        "--model", nargs="+", default=[model], help="models that visitors can choose; the page opens with the first"
    )
    # A Space sets these variables, which gradio also reads.
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="address to listen at (default %(default)s; 127.0.0.1 is this machine alone)",
    )
    parser.add_argument(
        "--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT"), help="default: the first free one from 7860"
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="another host name to accept; repeatable"
    )
    parser.add_argument(
        "--seconds", type=float, help="time limit of a run (default 120; 3600 if no other machine reaches the page)"
    )
    parser.add_argument(
        "--any-model",
        action=argparse.BooleanOptionalAction,
        help="let visitors name any model (default: only if no other machine reaches the page)",
    )
    parser.add_argument(
        "--trust-visitors", action="store_true", help="allow --any-model although other machines reach the page"
    )
    return parser
