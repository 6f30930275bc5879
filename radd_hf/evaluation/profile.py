# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Estimates the information profile of a RADD model on a text, and saves it for `generate(schedule="profile")`.

    radd profile checkpoints/radd-austen --dataset austen
    radd profile JingyangOu/radd-t-dce --tokenizer gpt2 --dataset wikitext103 --output my-settings

For each number of visible tokens, the profile holds the mean negative log-probability of the next token in a random
order (`radd_hf/information.py`). It is written to generation_config.json; the other settings of that file stay.
"""

import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from torch import Tensor
from tqdm import tqdm
from transformers.utils import GENERATION_CONFIG_NAME

from .. import RaddForMaskedLM, RaddGenerationConfig
from ..data.benchmark_texts import EvaluationText
from ..endings import visible
from ..hub.loading import load
from ..hub.runs import MANIFEST, newest_model
from ..information import ROWS_OF_A_COUNT, InformationProfile, information_profile
from ..noise_radd import Noise, expected_evaluations, get_noise, reveal_probabilities
from ..plan_radd import balanced_sizes, expected_kl, expected_kl_of_grid, group_sizes
from ..processes import (
    PRECISIONS,
    ScriptParser,
    launched_precision,
    make_accelerator,
    script_parser,
    silence_progress_bars,
)
from ..ranges import COUNT, Range, check_fields
from ..results import replace_text
from .perplexity import TextArguments, load_text

DIGITS = 4  # decimals of the saved nats: a hundredth of their usual error
COLUMNS = ("tweedie", "balanced", "profile")


@dataclass
class Arguments(TextArguments):
    blocks: int = field(default=256, metadata={"help": "number of blocks of the text to use, spread evenly over it"})
    passes: int = field(default=16, metadata={"help": "masks drawn for each block"})
    batch_size: int = field(default=32, metadata={"help": "rows in a forward pass"})
    seed: int = field(default=0, metadata={"help": "seed of the masks"})
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "precision, one of no, bf16, fp16; default: the launcher's, or no", "values": PRECISIONS},
    )
    output: str | None = field(
        default=None,
        metadata={"help": f"folder whose {GENERATION_CONFIG_NAME} gets the profile; default: the model's folder"},
    )


RANGES = {"length": COUNT, "blocks": Range(2, COUNT.high), "passes": COUNT, "batch_size": COUNT}


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    args.model = newest_model(args.model)
    target = check_target(args)
    accelerator = make_accelerator(mixed_precision=args.mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError(f"WORLD_SIZE={accelerator.num_processes} must be 1: one process estimates the profile.")
    silence_progress_bars(accelerator)
    model, tokenizer = load(args.model, args.tokenizer, device=accelerator.device)
    saved = settings_at(target, model)
    text = load_text(args, model, tokenizer)
    length = model.config.max_position_embeddings if args.length is None else args.length
    blocks = choose_blocks(args, text, length)
    started = time.perf_counter()
    bar = tqdm(
        total=len(blocks) * args.passes,
        unit="row",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with bar, accelerator.autocast():
        profile = information_profile(
            model, blocks, passes=args.passes, batch_size=args.batch_size, seed=args.seed, report=bar.update
        )
    saved.information_profile = [round(nats, DIGITS) for nats in profile.nats]
    saved.validate()
    replace_text(target, saved.to_json_string())
    print(
        f"{visible(args.model)} on {visible(args.dataset)}, {text.description['split']}: {len(blocks)} blocks of "
        f"{length} tokens, {args.passes} masks each, {time.perf_counter() - started:.0f} s\n"
    )
    print(table(profile, get_noise(model.config)))
    print(f"\nSaved in {visible(str(target))}. Use it by generate(steps=N, schedule='profile').")


def make_parser() -> ScriptParser:
    return script_parser(__doc__, Arguments)


def parse_arguments(argv: list[str]) -> Arguments:
    (args,) = make_parser().parse(argv)
    check_fields(asdict(args), RANGES)
    args.mixed_precision = launched_precision(args.mixed_precision)
    return args


def check_target(args: Arguments) -> Path:
    """Returns the file to write the profile to. Raises a ValueError if it cannot be written."""
    folder = Path(args.model if args.output is None else args.output)
    if not folder.is_dir():
        if args.output is None:
            raise ValueError(
                f"model={args.model!r} is not a folder, so the profile cannot be saved there: pass output=FOLDER."
            )
        raise ValueError(f"output={args.output!r} must be an existing folder: make it first.")
    if (folder / MANIFEST).is_file():
        raise ValueError(
            f"{'model' if args.output is None else 'output'}={str(folder)!r} is a checkpoint of a training run, which "
            "resumes only from unchanged files: pass output= with another folder, such as a copy for the Hub "
            f"(radd convert {folder} FOLDER --tokenizer {folder})."
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{'model' if args.output is None else 'output'}={str(folder)!r} cannot be written to.")
    return folder / GENERATION_CONFIG_NAME


def settings_at(target: Path, model: RaddForMaskedLM) -> RaddGenerationConfig:
    """Returns the settings saved in the target, or else those of the model."""
    if target.exists():
        return cast(RaddGenerationConfig, RaddGenerationConfig.from_pretrained(target.parent))
    return RaddGenerationConfig(**model.generation_config.to_dict())


def choose_blocks(args: Arguments, text: EvaluationText, length: int) -> list[Tensor]:
    """Returns blocks spread over the text, without a shorter last one. Raises a ValueError if there are too few."""
    whole = len(text.blocks) - (len(text.blocks[len(text.blocks) - 1]) < length)
    count = min(args.blocks, whole)
    if count < 2:
        raise ValueError(
            f"length={length}: dataset={args.dataset!r} has {whole} blocks of that length, but 2 are needed: pass a "
            "smaller length or a longer text."
        )
    if args.passes * count < ROWS_OF_A_COUNT * length:
        raise ValueError(
            f"passes={args.passes} of {count} blocks are too few for {length} tokens: pass "
            f"passes={-(-ROWS_OF_A_COUNT * length // count)} or more."
        )
    return [text.blocks[index * whole // count] for index in range(count)]


def steps_for(noise: Noise, events: int, masked: int) -> int:
    """Returns the number of steps of the time grid whose expected number of evaluations is nearest to `events`."""

    def distance(steps: int) -> float:
        return abs(expected_evaluations(noise, "tweedie", steps, masked) - events)

    steps = events
    while distance(steps + 1) < distance(steps):
        steps += 1
    return steps


def divergences(profile: list[float], best: list[float], events: int, noise: Noise) -> dict[str, float]:
    """Returns the expected divergence of Tweedie, of balanced groups and of the best groups, at `events` evaluations.

    Args:
        profile: (L,), the profile that gives the divergence.
        best: (L,), the profile that the best groups are chosen by.
    """
    length = len(profile)
    reveal = reveal_probabilities(noise, "tweedie", steps_for(noise, events, length))
    return {
        "tweedie": expected_kl_of_grid(profile, length, reveal),
        "balanced": expected_kl(profile, balanced_sizes(length, events)),
        "profile": expected_kl(profile, group_sizes(best, length, events)),
    }


def table(profile: InformationProfile, noise: Noise) -> str:
    length = len(profile.nats)
    lines = [f"{'visible tokens':<16}{'nats of the next':>18}  +-"]
    for visible_tokens in dict.fromkeys(length * part // 16 for part in (0, 1, 2, 4, 8, 12, 15)):
        nats, error = profile.nats[visible_tokens], profile.standard_errors[visible_tokens]
        lines.append(f"{visible_tokens:<16}{nats:>18.3f}  {error:.3f}")
    lines += ["", "Expected divergence from one token at a time, in nats per text:", ""]
    lines.append(f"{'evaluations':<16}" + "".join(f"{name:>10}" for name in COLUMNS))
    for events in dict.fromkeys(max(length // part, 1) for part in (16, 8, 4)):
        nats_of = divergences(profile.nats, profile.nats, events, noise)
        lines.append(f"{events:<16}" + "".join(f"{nats_of[name]:>10.2f}" for name in COLUMNS))
    return "\n".join(lines)
