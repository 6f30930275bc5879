# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs `radd score`: the likelihood of a text, of a continuation given its prefix, or of each row of a file."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from ..endings import UsageError, note, visible
from ..evaluation.perplexity import MOST_PASSES, figure_lines, passes_line
from ..jobs.job import run_on_file
from ..jobs.scoring import RowScorer, ScoredRow, columns_to_score
from ..likelihood import ESTIMATORS, check_estimate
from ..ranges import check_count
from ..results import to_json
from .cli import _parser, add_computation_arguments, add_file_arguments
from .files import check_file_arguments, check_model, load_for_file, load_model, open_file, read_input, usage

# Default passes of one text, and of a row of a file. The errors of many rows average out, that of one text does not.
PASSES, PASSES_OF_A_ROW = 64, 16

EXAMPLES = """\
examples:
  radd score checkpoints/radd-austen "It was a truth universally acknowledged."
  radd score checkpoints/radd-austen --prefix "It was" --continuation " a very cold day." --estimator ar_forward
  cat letter.txt | radd score checkpoints/radd-austen --target-se 0.1 --json
  radd score checkpoints/radd-austen --input sentences.jsonl --output scores.jsonl
  accelerate launch -m radd_hf score checkpoints/radd-austen --input pairs.parquet --output scores.parquet

A text with more tokens than the model's length is cut into blocks, like in radd eval, and each block is scored by
itself. White space at the end of a prefix counts as the beginning of the continuation. +- is one standard error: other
random masks change the estimate by about that much. ar_forward, ar_backward, ar_confidence, ar_margin and ar_entropy
are exact: they compute the likelihood in their order, without random masks.

The authors' released models have no tokenizer: add --tokenizer gpt2.
"""


# Arguments refused for a file of texts.
FOR_ONE_TEXT = "text", "prefix", "continuation", "json"


def main(argv: list[str]) -> None:
    args = make_parser().parse_intermixed_args(argv)
    check_model(args)
    if args.input is None and args.output is None:
        _score_text(args)
    else:
        _score_file(args)


def make_parser() -> argparse.ArgumentParser:
    parser = _parser("radd score", "Computes the likelihood of a text, or of each row of a file.", EXAMPLES)
    parser.usage = "radd score MODEL [TEXT] [options]"
    parser.set_defaults(command="score")
    parser.add_argument("model", metavar="MODEL", help="folder or repository of a RADD model")
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="text to score; '-' reads standard input, the default in a pipe without --prefix and --continuation",
    )
    parser.add_argument("--prefix", metavar="TEXT", help="text before the continuation; '-' reads standard input")
    parser.add_argument(
        "--continuation",
        metavar="TEXT",
        help="text to score given the prefix, instead of TEXT; '-' reads standard input",
    )

    add_file_arguments(parser, "a column 'text', or columns 'prefix' and 'continuation'")

    how = parser.add_argument_group("estimate")
    how.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        default="k_stratified",
        help="how the likelihood is estimated, see docs/evaluation.md (default %(default)s)",
    )
    how.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help=f"random masks or orders per text (default {PASSES}; for the texts of a file {PASSES_OF_A_ROW}; with "
        f"--target-se at most {MOST_PASSES})",
    )
    how.add_argument("--target-se", type=float, metavar="X", help="standard error to reach, in nats per token")
    how.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the masks and orders (default 0)")

    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    out.add_argument("--quiet", "-q", action="store_true", help="print no remarks on standard error")

    add_computation_arguments(parser)
    return parser


def _settings(args: argparse.Namespace, passes: int) -> dict[str, Any]:
    """Returns the settings of the estimate. It checks them before a model is loaded.

    Args:
        passes: number of passes if the command line has neither --passes nor --target-se.

    Raises:
        UsageError: for a setting that does not fit.
    """
    if args.passes is None:
        args.passes = passes if args.target_se is None else MOST_PASSES
    settings = {name: getattr(args, name) for name in ("estimator", "passes", "target_se")}
    with usage():
        check_estimate(**settings)
        if args.batch_tokens is not None:
            check_count("batch_tokens", args.batch_tokens)
    return settings


# ---------------------------------------------------------------------------------------------------------
# One text
# ---------------------------------------------------------------------------------------------------------


def _score_text(args: argparse.Namespace) -> None:
    row, settings = _row(args, sys.stdin), _settings(args, PASSES)
    model, tokenizer = load_model(args)
    scorer = RowScorer(model, tokenizer, seed=args.seed, batch_tokens=args.batch_tokens, **settings)
    (scored,) = scorer.score([row], [0])
    if scored.likelihood is None:
        raise UsageError(str(scored.error))
    if scored.error is not None:
        raise ValueError(scored.error)
    found, longest = scored.likelihood, model.config.max_position_embeddings
    if found.n_sequences > 1 and not args.quiet:
        note(
            f"{found.n_tokens} tokens are more than the {longest} that the model was trained on. They are cut into "
            f"{found.n_sequences} blocks, and each block is scored by itself."
        )
    print(to_json(_figures(scored) | {"seed": args.seed}) if args.json else _table(args.model, scored))


def _row(args: argparse.Namespace, stdin: TextIO) -> Mapping[str, str]:
    """Returns the text to score as a row.

    Raises:
        UsageError: for arguments that contradict each other, or if there is no text.
    """
    given = {name: getattr(args, name) for name in ("text", "prefix", "continuation")}
    if not stdin.isatty() and not any(value is not None for value in given.values()):
        given["text"] = "-"
    given = {name: value for name, value in given.items() if value is not None}
    if "text" in given and len(given) > 1:
        raise UsageError(f"TEXT {args.text[:60]!r} is the whole text: leave it out, or --prefix and --continuation.")
    if not given.keys() & {"text", "continuation"}:
        raise UsageError("pass a text to score, or a --continuation and the --prefix before it.")
    piped = [name for name, value in given.items() if value == "-"]
    if len(piped) > 1:
        raise UsageError("--prefix and --continuation cannot both be read from standard input.")
    for name in piped:
        with usage():
            given[name] = read_input(stdin)
        if not given[name]:
            raise UsageError("standard input is empty: pass a text to score.")
    return given


def _figures(scored: ScoredRow) -> dict[str, Any]:
    """Returns the result of a row, with the figures that only a single text has."""
    found, result = scored.likelihood, scored.to_dict()
    assert found is not None
    del result["error"]
    more = ("perplexity", "perplexity_error", "interval", "perplexity_interval", "estimator", "passes")
    return result | {name: getattr(found, name) for name in more}


def _table(model: str, scored: ScoredRow) -> str:
    found = scored.likelihood
    assert found is not None
    nats = {
        "nats": found.nats_per_token * found.n_tokens,
        "nats_error": found.standard_error * found.n_tokens,
        "nats_interval": [end * found.n_tokens for end in found.interval],
    }
    size = f"{found.n_tokens:,} tokens" + ("" if found.n_bytes is None else f", {found.n_bytes:,} bytes")
    blocks = f" in {found.n_sequences} blocks" if found.n_sequences > 1 else ""
    lines = [
        f"{model}: {size}{blocks}; {found.estimator}, {passes_line(found.passes)}",
        "",
        *figure_lines(nats | found.to_dict()),
    ]
    if found.n_bytes is None:
        lines += ["", "The tokens do not cover the whole text, so there is no figure per byte."]
    return "\n".join(map(visible, lines))


# ---------------------------------------------------------------------------------------------------------
# A file
# ---------------------------------------------------------------------------------------------------------


def _score_file(args: argparse.Namespace) -> None:
    check_file_arguments(args, make_parser(), FOR_ONE_TEXT)
    settings = _settings(args, PASSES_OF_A_ROW)
    accelerator, source = open_file(args)
    with usage():
        columns = columns_to_score(source.columns, args.text_column)
    model, tokenizer, identity = load_for_file(args, accelerator)

    def make_work(seed: int) -> RowScorer:
        asked = {"seed": seed, "batch_tokens": args.batch_tokens, "columns": columns}
        return RowScorer(model, tokenizer, **asked, **settings)

    run_on_file(accelerator, source, args.output, make_work, identity, args.seed, unit="text", quiet=args.quiet)
