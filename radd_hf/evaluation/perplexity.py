# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the zero-shot perplexity of a RADD model on a text, with its standard error.

    accelerate launch eval_ppl.py --model checkpoints/radd-austen --dataset austen
    accelerate launch eval_ppl.py --model JingyangOu/radd-t-dce --tokenizer gpt2 --dataset wikitext103 --output r.json

The text is cut into blocks of the model's length; the last one may be shorter. Every token counts once. `--protocol
radd` cuts and averages like the authors' code. `--resume` continues an interrupted evaluation that has an `--output`.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import cast

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from .. import RaddForMaskedLM, __version__
from ..data.benchmark_texts import EVALUATION_SETS, PROTOCOLS, EvaluationText, load_evaluation_text
from ..endings import visible
from ..hub.loading import load, weights_hash
from ..hub.runs import newest_model
from ..kernels_radd import packed_weights
from ..likelihood import ESTIMATORS, LikelihoodRounds, check_estimator, check_passes, plan_rounds
from ..processes import (
    PRECISIONS,
    ScriptParser,
    launched_precision,
    make_accelerator,
    on_main,
    script_parser,
    silence_progress_bars,
)
from ..ranges import COUNT, POSITIVE, check_fields
from ..results import check_output, to_json
from .rounds import RoundsFile, rounds_bar

MOST_PASSES = 1024  # with --target_se and without --passes
# The range of each numeric field. A seed can be any integer, since it is hashed.
RANGES = {"length": COUNT, "passes": COUNT, "target_se": POSITIVE, "batch_size": COUNT}


@dataclass
class TextArguments:
    """Names a model, a text, and how the text is cut."""

    model: str = field(metadata={"help": "RADD model, ours or the authors': a folder or a Hub repository"})
    dataset: str = field(
        default="austen",
        metadata={
            "help": f"text: one of {', '.join(EVALUATION_SETS)}; a local file, folder or pattern; a data set of the Hub"
        },
    )
    split: str | None = field(
        default=None, metadata={"help": "split of the data set; default: its usual one, or all of a local text"}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "configuration of another data set, or a subfolder of a local folder"}
    )
    text_column: str | None = field(default=None, metadata={"help": "column of another data set that holds the text"})
    protocol: str = field(
        default="clean", metadata={"help": f"how to cut the text and average, one of {PROTOCOLS}", "values": PROTOCOLS}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "name or folder of the tokenizer; default: the model's"}
    )
    special_tokens_in_text: bool = field(
        default=False,
        metadata={
            "help": "read a special token spelled in the text, such as EOS, as that token; default: as characters"
        },
    )
    length: int | None = field(default=None, metadata={"help": "tokens in a block; default: the model's length"})


@dataclass
class Arguments(TextArguments):
    estimator: str = field(
        default="k_stratified",
        metadata={"help": f"estimator of the likelihood, one of {', '.join(ESTIMATORS)}", "values": ESTIMATORS},
    )
    passes: int | None = field(
        default=None,
        metadata={"help": f"masks drawn for each block; default: 16, or with --target_se at most {MOST_PASSES}"},
    )
    target_se: float | None = field(default=None, metadata={"help": "standard error to reach, in nats per token"})
    batch_size: int = field(default=32, metadata={"help": "rows in a forward pass of each process"})
    seed: int = field(default=0, metadata={"help": "seed of the masks"})
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "precision, one of no, bf16, fp16; default: the launcher's, or no", "values": PRECISIONS},
    )
    output: str | None = field(default=None, metadata={"help": "JSON file to write the result to"})
    resume: bool = field(
        default=False, metadata={"help": "continue from the rounds that an interrupted evaluation left beside output"}
    )


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    accelerator = make_accelerator(mixed_precision=args.mixed_precision)
    silence_progress_bars(accelerator)
    args.model = on_main(accelerator, lambda: newest_model(args.model))
    model, tokenizer = load(args.model, args.tokenizer, device=accelerator.device)
    with accelerator.local_main_process_first():  # it tokenises first, and the others read its cache
        text = load_text(args, model, tokenizer)
    identity = text.description | {
        "model": args.model,
        "weights": weights_hash(model),
        "estimator": args.estimator,
        "passes": args.passes if args.target_se is None else None,
        "seed": args.seed,
        "mixed_precision": args.mixed_precision,
    }
    kept = None
    if args.output is not None:
        rows, _, most = plan_rounds(args.estimator, cast(int, args.passes), args.target_se)
        kept = RoundsFile(
            Path(args.output),
            identity | {"rows_of_a_round": rows},
            accelerator.process_index,
            args.resume,
            sequences=len(text.blocks),
            rounds=most,
        )
    started = time.perf_counter()
    figures = score(args, accelerator, model, text, kept)
    if not accelerator.is_main_process:
        return
    figures |= {"seconds": round(time.perf_counter() - started, 1), "processes": accelerator.num_processes}
    print(table(identity, figures))
    if args.output is not None and kept is not None:
        versions = {"radd_hf": __version__} | {name: version(name) for name in ("torch", "transformers", "datasets")}
        result = identity | figures | {"versions": versions}
        Path(args.output).write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
        kept.remove()


def make_parser() -> ScriptParser:
    return script_parser(__doc__, Arguments)


def parse_arguments(argv: list[str]) -> Arguments:
    (args,) = make_parser().parse(argv)
    check_fields(asdict(args), RANGES)
    check_estimator(args.estimator)
    if args.passes is None:
        args.passes = 16 if args.target_se is None else MOST_PASSES
    check_passes(args.passes)
    args.mixed_precision = launched_precision(args.mixed_precision)
    if args.resume and args.output is None:
        raise ValueError("resume=True needs output=: an interrupted evaluation keeps its rounds beside that file.")
    check_output("output", args.output)
    return args


def load_text(args: TextArguments, model: RaddForMaskedLM, tokenizer: PreTrainedTokenizerBase) -> EvaluationText:
    return load_evaluation_text(
        args.dataset,
        tokenizer,
        length=model.config.max_position_embeddings if args.length is None else args.length,
        protocol=args.protocol,
        split=args.split,
        config=args.dataset_config,
        text_column=args.text_column,
        special_tokens_in_text=args.special_tokens_in_text,
    )


def score(
    args: Arguments, accelerator: Accelerator, model: RaddForMaskedLM, text: EvaluationText, kept: RoundsFile | None
) -> dict:
    """Computes the figures. A progress bar shows the estimate so far, from this process's share."""
    accelerator.wait_for_everyone()  # until all have read the saved rounds
    known = {} if kept is None else kept.known
    if kept is not None:
        kept.open()
    mine = range(accelerator.process_index, len(text.blocks), accelerator.num_processes)
    work = LikelihoodRounds(
        model,
        text.blocks,
        estimator=args.estimator,
        passes=cast(int, args.passes),
        target_se=args.target_se,
        batch_size=args.batch_size,
        seed=args.seed,
        weights=text.weights,
        accelerator=accelerator,
        known=known,
    )
    bar = rounds_bar(accelerator, [len(block) for block in text.blocks], work.first_rounds)
    with bar as show, accelerator.autocast(), packed_weights():
        for (sequence, _), nats in known.items():
            if sequence in mine:
                show(sequence, nats)
        for found in work:
            if not math.isfinite(found.nats):
                raise FloatingPointError(
                    f"block {found.sequence} of the text has {found.nats} nats: the network overflows under "
                    f"mixed_precision={args.mixed_precision!r}; bf16 and no have a wider range than fp16."
                )
            if kept is not None:
                kept.add(*found)
            show(found.sequence, found.nats)
    accelerator.wait_for_everyone()
    return work.summary(text.n_bytes).to_dict()


def table(identity: dict, figures: dict) -> str:
    """Lays out the figures of a text for a terminal.

    Args:
        identity: model, dataset, split, protocol, end_of_text, length and estimator.
        figures: those of `Likelihood.to_dict`, and the seconds it took.
    """
    lines = [
        f"{identity['model']} on {identity['dataset']}, {identity['split']}; protocol {identity['protocol']}, "
        f"end of text {identity['end_of_text']}",
        f"{figures['n_tokens']:,} tokens in {figures['n_sequences']:,} blocks of {identity['length']}; "
        f"{identity['estimator']}, {figures['passes']} passes, {figures['seconds']:.0f} s",
        "",
        *figure_lines(figures),
    ]
    lines += ["", "+- is one standard error of the estimate on this text."]
    if figures["spread"] is not None:
        lines.append(f"Between blocks, nats per token have a standard deviation of {figures['spread']:.2f}.")
    if "bits_per_byte" not in figures:
        lines.append("The tokens do not hold the whole text, so there is no figure per byte.")
    return "\n".join(map(visible, lines))


def figure_lines(figures: dict) -> list[str]:
    """Returns the lines of a table: each figure present, with its standard error and its 95 % interval."""
    names = {
        "nats": ("nats", "nats_error", "nats_interval", 3),
        "nats per token": ("nats_per_token", "standard_error", "interval", 4),
        "bits per byte": ("bits_per_byte", "bits_per_byte_error", "bits_per_byte_interval", 4),
        "perplexity": ("perplexity", "perplexity_error", "perplexity_interval", 2),
    }
    lines = [f"{'':<15}{'':>10}  {'+-':<9} 95 %"]
    for title, (value, error, interval, digits) in names.items():
        if value in figures:
            low, high = (f"{end:.{digits}f}" for end in figures[interval])
            lines.append(f"{title:<15}{figures[value]:>10.{digits}f}  {figures[error]:<9.{digits}f} {low} .. {high}")
    return lines
