# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the quality and the cost of what a RADD model writes, over methods and numbers of steps.

    accelerate launch eval_generation.py --model checkpoints/radd-austen --judge gpt2-large --reference austen
    accelerate launch eval_generation.py --model DIR --methods tweedie --steps 16,64,256 --output r.json --plot r.png

The samples are unconditional. Each has a generator of its own, so that neither the batch size nor the number of
processes changes its random numbers. The first process scores them all under the judge, another language model.
`radd_hf/evaluation/quality.py` defines each figure; NFE is the number of network evaluations of a sample.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from .. import RaddForMaskedLM, RaddGenerationConfig
from ..data.blocks import Blocks
from ..data.documents import load_documents, tokenize
from ..endings import note, visible
from ..figure_style import check_figure, save_figure
from ..hub.loading import load
from ..hub.runs import newest_model
from ..processes import PRECISIONS, ScriptParser, launched_precision, make_accelerator, on_main, script_parser
from ..ranges import COUNT, LARGEST, Range, check_fields
from ..results import check_output, to_json
from ..settings_radd import ADAPTIVE_ORDERS, BOUNDS, GRID_METHODS, METHODS, ORDERS, TEXT_SETTINGS, is_adaptive
from .plots import quality_figure, series_of
from .quality import N_GRAMS, Samples, expected_nfe, load_judge, spread_rows, text_figures, write_samples


@dataclass
class Arguments:
    model: str = field(metadata={"help": "folder or repository of a RADD model"})
    tokenizer: str | None = field(default=None, metadata={"help": "name or folder; default: the model's"})
    methods: str = field(default=",".join(METHODS), metadata={"help": f"separated by commas: of {','.join(METHODS)}"})
    steps: str = field(
        default="8,16,32,64,128",
        metadata={"help": "separated by commas; 'first_hitting' takes none, 'ordered' no more than the length"},
    )
    orders: str = field(
        default="forward", metadata={"help": f"of 'ordered', separated by commas: of {','.join(ORDERS)}"}
    )
    schedule: str | None = field(
        default=None,
        metadata={
            "help": "'profile': rows of generate's schedule of that name, too, for each of the steps; the model must "
            "have its profile (radd profile)"
        },
    )
    entropy_bounds: str | None = field(
        default=None,
        metadata={"help": "of the adaptive 'orders' ('entropy' if there is none), in nats, separated by commas"},
    )
    confidence_thresholds: str | None = field(
        default=None,
        metadata={"help": "of the adaptive 'orders' ('confidence' if there is none), separated by commas"},
    )
    n_samples: int = field(default=64, metadata={"help": "written for each row of the table; at least 2"})
    batch_size: int = field(default=32, metadata={"help": "samples written together in each process"})
    seed: int = 0
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "no, bf16 or fp16, of the model; default: the launcher's, or no", "values": PRECISIONS},
    )
    judge: str | None = field(
        default=None, metadata={"help": "causal model for the generative perplexity: name, folder or .gguf file"}
    )
    judge_batch_size: int = field(default=8, metadata={"help": "texts that are judged together"})
    reference: str | None = field(
        default=None, metadata={"help": "the same figures of a text: 'austen', a local file or a data set of the Hub"}
    )
    reference_split: str | None = field(
        default=None, metadata={"help": "of it; default: validation of 'austen' (its held-out novel), else all"}
    )
    text_column: str = field(default="text", metadata={"help": "of the reference, if it has columns"})
    special_tokens_in_text: bool = field(
        default=False,
        metadata={
            "help": "a special token that the reference spells, such as EOS, is that token; default: its characters"
        },
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the result"})
    plot: str | None = field(
        default=None,
        metadata={"help": "picture of the result, and NAME-dark for dark pages; needs matplotlib"},
    )


# The numbers that each field may be. A seed may be any: it is hashed.
RANGES = {"n_samples": Range(2, LARGEST), "batch_size": COUNT, "judge_batch_size": COUNT}

# Settings that differ from row to row of the table, and those that all rows share. Samples that end early, at EOS or
# for lack of time, could not be compared. Speculation does not go with all methods, and changes no distribution.
VARIED = ("method", "order", "steps", "schedule", *BOUNDS)
COMMON = [name for name in TEXT_SETTINGS if name not in (*VARIED, "speculate", "exact", "stop_on_eos", "max_time")]
SamplingArguments = make_dataclass(
    "SamplingArguments",
    [
        (name, setting.kind | None, field(default=setting.default, metadata={"help": setting.help}))
        for name, setting in TEXT_SETTINGS.items()
        if name in COMMON
    ],
)


@dataclass(frozen=True)
class Sampler:
    """Holds the settings of `generate` for a row of the table, None where the method takes no such setting."""

    method: str
    order: str | None = None
    steps: int | None = None
    entropy_bound: float | None = None
    confidence_threshold: float | None = None
    schedule: str | None = None

    @property
    def bounded(self) -> bool:
        """Tells whether the model decides how many evaluations a sample takes."""
        return self.entropy_bound is not None or self.confidence_threshold is not None

    def __str__(self) -> str:
        return ", ".join([series_of(asdict(self)), *([] if self.steps is None else [f"{self.steps} steps"])])


def main(argv: list[str]) -> None:
    args, drawing = parse_arguments(argv)
    methods, orders, steps, bounds = check(args, drawing)
    accelerator = make_accelerator(mixed_precision=args.mixed_precision)
    args.model = on_main(accelerator, lambda: newest_model(args.model))
    model, tokenizer = load(args.model, args.tokenizer, device=accelerator.device)
    profile = getattr(model.generation_config, "information_profile", None)
    if args.schedule is not None and profile is None:
        raise ValueError(f"schedule={args.schedule!r} needs a profile, which {args.model!r} has not: run radd profile.")
    length = drawing["length"] = drawing["length"] or model.config.max_position_embeddings
    samplers = make_samplers(methods, orders, steps, length, bounds, args.schedule)
    # Before anything is written, since these can fail.
    judged_by = load_judge(args.judge) if args.judge is not None and accelerator.is_main_process else None
    reference = read_reference(args, tokenizer, length) if accelerator.is_main_process else None

    written = list(write(args, drawing, model, samplers, accelerator))
    if not accelerator.is_main_process:
        return
    if judged_by is not None:
        judged_by[0].to(accelerator.device)

    known: dict[bytes, dict[str, Any]] = {}  # samplers may write the same samples: judge those once

    def figures_of(ids: torch.Tensor, name: str) -> dict[str, Any]:
        key = ids.numpy().tobytes()
        if key not in known:
            known[key] = text_figures(ids, tokenizer, judged_by, batch_size=args.judge_batch_size)
        if judged_by is not None:
            note(f"judged {visible(name)}")
        return known[key]

    rows = []
    for sampler, samples in zip(samplers, written, strict=True):
        cost = {
            "nfe": samples.nfe,
            "nfe_error": samples.nfe_error,
            "nfe_formula": None
            if sampler.bounded
            else expected_nfe(model.config, sampler.method, sampler.steps, length),
            "seconds_per_sample": samples.seconds_per_sample,
        }
        rows.append(asdict(sampler) | cost | figures_of(samples.ids, str(sampler)))
    result: dict[str, Any] = {
        "model": args.model,
        "n_samples": args.n_samples,
        **drawing,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
        "device": device_name(accelerator),
        "judge": args.judge,
        "rows": rows,
        "reference": None,
    }
    if reference is not None:
        text = {"text": args.reference, "split": args.reference_split}
        result["reference"] = text | figures_of(reference, f"text of {args.reference}")
    print(table(result))
    if args.output is not None:
        Path(args.output).write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        save_figure(partial(quality_figure, result), args.plot)


def write(
    args: Arguments,
    drawing: dict[str, Any],
    model: RaddForMaskedLM,
    samplers: list[Sampler],
    accelerator: Accelerator,
) -> Iterator[Samples]:
    """Writes the samples of each sampler, by all processes together."""
    with accelerator.autocast():
        # A first sample sets up what would otherwise count as the first row's time.
        write_samples(model, accelerator.num_processes, accelerator=accelerator, method="tweedie", steps=1, **drawing)
        for sampler in samplers:
            samples = write_samples(
                model,
                args.n_samples,
                seed=args.seed,
                batch_size=args.batch_size,
                accelerator=accelerator,
                **drawing,
                **asdict(sampler),
            )
            if accelerator.is_main_process:
                note(f"wrote {sampler} in {samples.seconds:.1f} s")
            yield samples


# ---------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------


def make_parser() -> ScriptParser:
    return script_parser(__doc__, Arguments, SamplingArguments)


def parse_arguments(argv: list[str]) -> tuple[Arguments, dict[str, Any]]:
    """Returns the arguments, and the settings of `generate` that all rows of the table share."""
    args, drawing = make_parser().parse(argv)
    args.mixed_precision = launched_precision(args.mixed_precision)
    return args, asdict(drawing)


def check(args: Arguments, drawing: dict[str, Any]) -> tuple[list[str], list[str], list[int], dict[str, list[float]]]:
    """Returns methods, orders, steps and bounds; raises a ValueError for what would fail after loading."""
    check_fields(asdict(args) | drawing, RANGES)
    methods = parse_list("methods", args.methods, METHODS)
    orders = parse_list("orders", args.orders, ORDERS)
    steps = [int(step) if step.isdecimal() else 0 for step in parse_list("steps", args.steps)]
    if not all(step in COUNT for step in steps):
        raise ValueError(f"steps={args.steps!r} must be whole numbers of at least 1, separated by commas.")
    bounds = {
        "entropy_bound": parse_numbers("entropy_bounds", args.entropy_bounds, "entropy_bound"),
        "confidence_threshold": parse_numbers(
            "confidence_thresholds", args.confidence_thresholds, "confidence_threshold"
        ),
    }
    if "ordered" not in methods and any(bounds.values()):
        raise ValueError(f"methods={args.methods!r} must have 'ordered', which entropy_bounds or thresholds are for.")
    adaptive = any(map(is_adaptive, orders)) or any(bounds.values())
    if "ordered" in methods and adaptive and drawing.get("refresh_interval", 1) > 1:
        raise ValueError(
            f"refresh_interval={drawing['refresh_interval']} evaluates few positions; the adaptive orders "
            f"{ADAPTIVE_ORDERS} need all that are masked: pass refresh_interval=1, or other orders."
        )
    if args.reference is None and args.reference_split is not None:
        raise ValueError(f"reference_split={args.reference_split!r} is of reference=, which is not given.")
    RaddGenerationConfig(**drawing, schedule=args.schedule)
    check_output("output", args.output)
    check_figure("plot", args.plot)
    return methods, orders, steps, bounds


def parse_list(name: str, value: str, allowed: Sequence[str] | None = None) -> list[str]:
    """Returns the parts between commas, each once."""
    parts = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    unknown = [part for part in parts if allowed is not None and part not in allowed]
    if unknown or not parts:
        of = "" if allowed is None else f", of {tuple(allowed)}"
        raise ValueError(f"{name}={value!r} must name at least one{of}, separated by commas; unknown: {unknown}.")
    return parts


def parse_numbers(name: str, value: str | None, setting: str) -> list[float]:
    """Returns the numbers between commas, each a value of the setting of `generate`; none of None."""
    try:
        numbers = [float(part) for part in (value or "").split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{name}={value!r} must be numbers, separated by commas.") from None
    for number in numbers:
        if not TEXT_SETTINGS[setting].accepts(number):
            raise ValueError(f"{name}={value!r}: {number:g} must be {TEXT_SETTINGS[setting].values}.")
    return list(dict.fromkeys(numbers))


def make_samplers(
    methods: list[str],
    orders: list[str],
    steps: list[int],
    length: int,
    bounds: dict[str, list[float]] | None = None,
    schedule: str | None = None,
) -> list[Sampler]:
    samplers: list[Sampler] = []
    events = list(dict.fromkeys(min(step, length) for step in steps))  # of methods that have no more than tokens
    for method in methods:
        if method in GRID_METHODS:
            samplers += [Sampler(method, steps=step) for step in steps]
        elif method == "first_hitting":
            samplers.append(Sampler(method))
        else:
            samplers += [Sampler(method, order, step) for order in orders for step in events]
            adaptive = [order for order in orders if is_adaptive(order)]
            for name, values in (bounds or {}).items():
                for order in adaptive or [BOUNDS[name]]:
                    samplers += [replace(Sampler(method, order), **cast(Any, {name: value})) for value in values]
    if schedule is not None:
        samplers += [Sampler("ordered", "random", step, schedule=schedule) for step in events]
    return samplers


def read_reference(args: Arguments, tokenizer: Any, length: int) -> torch.Tensor | None:
    """Returns (n_samples, length) ids from all over the text; sets `args.reference_split` to the split used."""
    if args.reference is None:
        return None
    args.reference_split = args.reference_split or ("validation" if args.reference == "austen" else "all")
    documents = load_documents(args.reference, args.reference_split, text_column=args.text_column, argument="reference")
    tokens = tokenize(documents, tokenizer, special_tokens_in_text=args.special_tokens_in_text)
    return spread_rows(Blocks(tokens, length), args.n_samples)


# ---------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------


def device_name(accelerator: Accelerator) -> str:
    """Names the device on which the seconds were measured."""
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    else:
        device = f"{platform.machine()} {accelerator.device.type}, {torch.get_num_threads()} threads"
    return device if accelerator.num_processes == 1 else f"{accelerator.num_processes} x {device}"


def table(result: dict) -> str:
    columns = ["method", "steps", "NFE measured", "formula", "s/sample", "perplexity", "entropy"]
    lines = [[*columns, *(f"distinct-{n}" for n in N_GRAMS)]]
    for row in result["rows"]:
        formula = "-" if row["nfe_formula"] is None else f"{row['nfe_formula']:.2f}"
        cost = [f"{row['nfe']:.2f} +- {row['nfe_error']:.2f}", formula]
        steps = "-" if row["steps"] is None else str(row["steps"])
        lines.append([series_of(row), steps, *cost, f"{row['seconds_per_sample']:.3f}", *text_cells(row)])
    if result["reference"] is not None:
        lines.append([f"text of {result['reference']['text']}", "-", "-", "-", "-", *text_cells(result["reference"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    notes = [
        f"{result['model']}: {result['n_samples']} samples of {result['length']} tokens in each row, seed "
        f"{result['seed']}, temperature {result['temperature']:g}, top_k {result['top_k']}, top_p {result['top_p']:g}"
        + approximation(result),
        f"seconds on {result['device']}, in batches of {result['batch_size']}",
        "perplexity: no judge" if result["judge"] is None else f"perplexity: under {result['judge']}",
    ]
    judgements = [row["judgement"] for row in [*result["rows"], result["reference"]] if row and row["judgement"]]
    if any(judgement["n_truncated"] for judgement in judgements):
        notes.append("some texts were longer than the context of the judge, which read their beginnings")
    if n_empty := sum(judgement.get("n_empty", 0) for judgement in judgements):
        notes.append(f"{n_empty} texts were empty and are left out of the perplexity")
    notes.append("entropy: of the tokens of a sample, in nats; +- is one standard error, of the choice of samples")
    body = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join(map(visible, notes[:3] + body + notes[3:]))


def approximation(result: dict) -> str:
    """Names the settings of an approximate sampler, for a note."""
    interval = result.get("refresh_interval", 1)
    return "" if interval == 1 else f", refresh_interval {interval}, refresh_window {result['refresh_window']}"


def text_cells(figures: dict) -> list[str]:
    judgement = figures["judgement"]
    perplexity = "-" if judgement is None else f"{judgement['perplexity']:.1f} +- {judgement['perplexity_error']:.1f}"
    distinct = [figures.get(f"distinct_{n}") for n in N_GRAMS]
    shares = ["-" if share is None else f"{share:.3f}" for share in distinct]
    entropy = f"{figures['token_entropy']:.3f} +- {figures['token_entropy_error']:.3f}"
    return [perplexity, entropy, *shares]
