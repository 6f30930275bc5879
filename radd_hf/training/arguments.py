# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a training: fields of three dataclasses, each a flag and a field of a YAML file.

    --config austen --batch_size 64   the fields of a file, then the flags, which win
    accelerate launch                 what the launcher was asked for as well must not contradict them

What cannot be is refused here, before anything is loaded. `restart.py` says which of them may change at a restart.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import torch
import yaml
from accelerate.tracking import get_available_trackers

from .. import RaddGenerationConfig
from ..configuration_radd import NOISE_TYPES
from ..data.documents import LEAST_VOCABULARY, check_held_out
from ..likelihood import check_passes
from ..losses import LOSS_TYPES, check_loss_type
from ..processes import PRECISIONS, ScriptParser, launched_precision, launcher_setting, script_parser
from ..ranges import (
    COUNT,
    COUNT_OR_ZERO,
    FRACTION,
    FRACTION_BELOW_ONE,
    LARGEST,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    check_fields,
)
from ..settings_radd import METHODS

ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention")
VOCAB_SIZE = 2048  # of a BPE that is made of the text
# transformers' schedules that are a function of the number of updates alone, and need no arguments of their own.
SCHEDULES = (
    "constant_with_warmup",
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)


# The numbers that each field may be; `check_fields` refuses others.
RANGES = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "lora_alpha"), COUNT),
    **dict.fromkeys(("max_steps", "log_steps", "save_steps", "eval_steps", "sample_steps", "sampling_steps"), COUNT),
    **dict.fromkeys(("batch_size", "accumulation", "eval_sequences", "eval_passes", "keep_last"), COUNT),
    **dict.fromkeys(("length", "tokenizing_workers"), COUNT),
    **dict.fromkeys(("n_samples", "lora_rank", "warmup_steps"), COUNT_OR_ZERO),
    **dict.fromkeys(("hidden_dropout", "lora_dropout", "adam_beta1", "adam_beta2", "ema_decay"), FRACTION_BELOW_ONE),
    **dict.fromkeys(("learning_rate", "weight_decay"), NOT_NEGATIVE),
    **dict.fromkeys(("embedding_std", "max_grad_norm"), POSITIVE),
    "timeout": Range(0, 7 * 24 * 60, open_low=True),  # minutes of a week
    "vocab_size": Range(LEAST_VOCABULARY, LARGEST),
    "held_out": Range(0, LARGEST),
    "random_length_fraction": FRACTION,
    "adam_epsilon": Range(torch.finfo(torch.float32).tiny, 1),  # less is 0 to the optimizer, which divides by it
    "seed": Range(0, 2**32 - 1),  # NumPy takes no other
}


def help_(text: str, values: Sequence[str] = ()) -> dict:
    """Makes the metadata of a field: its help, and the values that [`ScriptParser`] completes."""
    return {"help": text, "values": values}


@dataclass
class ModelArguments:
    """The arguments of the model. A field that is left out is that of `init_from`, or of the paper's small model."""

    init_from: str | None = field(default=None, metadata=help_("folder or repository of a RADD model to start from"))
    hidden_size: int | None = field(default=None, metadata=help_("small: 768, medium: 1024"))
    num_hidden_layers: int | None = field(default=None, metadata=help_("small: 12, medium: 24"))
    num_attention_heads: int | None = field(default=None, metadata=help_("small: 12, medium: 16"))
    hidden_dropout: float | None = field(default=None, metadata=help_("0.02 in the paper's models"))
    noise_type: str | None = field(
        default=None, metadata=help_("loglinear or geometric; the t losses depend on it", NOISE_TYPES)
    )
    embedding_std: float | None = field(default=None, metadata=help_("normal embedding; default: the paper's"))
    zero_init_residual: bool | None = field(default=None, metadata=help_("residual branches start at zero"))
    lora_rank: int = field(default=0, metadata=help_("train low-rank adapters alone; 0: all weights"))
    lora_alpha: int = field(default=16, metadata=help_("adapters are scaled by alpha / rank"))
    lora_dropout: float = 0.0


@dataclass
class DataArguments:
    dataset: str = field(
        default="austen",
        metadata=help_(
            "'austen', a data set of the Hub, or local .txt, .jsonl, .json or .parquet: file, folder, pattern"
        ),
    )
    dataset_config: str | None = field(default=None, metadata=help_("of a data set of the Hub; of a folder, one in it"))
    text_column: str = "text"
    streaming: bool = field(default=False, metadata=help_("read while training, without a copy on the disk"))
    held_out: float = field(
        default=0.05, metadata=help_("for validation, if the data has no such split: fraction or number of documents")
    )
    validation_dataset: str | None = field(
        default=None, metadata=help_("that is scored instead: its split validation, else test, else all of it")
    )
    validation_config: str | None = None
    tokenizer: str | None = field(
        default=None, metadata=help_("name or folder; default: of init_from, or a BPE of the training text")
    )
    vocab_size: int | None = field(
        default=None, metadata=help_(f"of the BPE, mask included; default: {VOCAB_SIZE} (without a tokenizer)")
    )
    special_tokens_in_text: bool = field(
        default=False,
        metadata=help_("a special token that the text spells, such as EOS, is that token; default: its characters"),
    )
    length: int | None = field(default=None, metadata=help_("tokens in a block; default: of init_from, or 1024"))
    tokenizing_workers: int | None = field(default=None, metadata=help_("processes; default: the tokenizer's threads"))
    random_length_fraction: float = field(
        default=0.0, metadata=help_("of the blocks are cut to a length uniform in 1 .. length, 0.01 say")
    )
    separate_documents: bool = field(
        default=False, metadata=help_("a token attends to its own document alone; eager or sdpa attention")
    )


@dataclass
class TrainingArguments:
    output_dir: str = "runs/radd"
    loss_type: str = field(default="lambda_DCE", metadata=help_(f"one of {LOSS_TYPES}", LOSS_TYPES))
    max_steps: int = 400_000
    batch_size: int = field(default=512, metadata=help_("sequences in one optimizer step, of all processes"))
    accumulation: int | None = field(
        default=None, metadata=help_("forwards of each process in one optimizer step; default: the launcher's, or 1")
    )
    learning_rate: float = 3e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    lr_schedule: str = field(default="constant_with_warmup", metadata=help_(f"one of {SCHEDULES}", SCHEDULES))
    warmup_steps: int = 2500
    max_grad_norm: float | None = field(
        default=None,
        metadata=help_("of the loss in nats per sequence; default: the launcher's, or 1.0 as in the paper"),
    )
    ema_decay: float = 0.9999
    mixed_precision: str | None = field(
        default=None, metadata=help_("no, bf16 or fp16; default: the launcher's, or no", PRECISIONS)
    )
    attn_implementation: str = field(
        default="sdpa", metadata=help_(", ".join(ATTENTION_IMPLEMENTATIONS), ATTENTION_IMPLEMENTATIONS)
    )
    gradient_checkpointing: bool = field(default=False, metadata=help_("compute activations twice, keep few"))
    compile: bool | None = field(
        default=None, metadata=help_("torch.compile the network and its loss; default: on a GPU")
    )
    compile_backend: str | None = field(default=None, metadata=help_("of torch.compile; inductor if none is named"))
    force: bool = field(default=False, metadata=help_("train although a step needs more memory than there is"))
    deterministic: bool = field(
        default=False, metadata=help_("the same bits in every run on the same GPU, also after a restart; slower there")
    )
    seed: int = 0
    log_steps: int = 50
    save_steps: int = 1000
    eval_steps: int = 1000
    sample_steps: int = 1000
    eval_sequences: int = field(default=128, metadata=help_("held-out blocks scored during training; all at the end"))
    eval_passes: int = 8
    n_samples: int = field(default=8, metadata=help_("texts written at each sampling; 0: none"))
    sampling_method: str = field(default="tweedie", metadata=help_("one of generate's", METHODS))
    sampling_steps: int | None = field(default=None, metadata=help_("of the method; default: generate's"))
    judge: str | None = field(default=None, metadata=help_("causal model that gives the samples a perplexity"))
    keep_last: int = field(default=2, metadata=help_("checkpoints"))
    strict: bool = field(
        default=False, metadata=help_("refuse to go on from an older checkpoint where the newest is damaged")
    )
    timeout: float = field(
        default=10.0, metadata=help_("minutes that a process of several waits for the others before it gives up")
    )
    log_with: str | None = field(default=None, metadata=help_("trackers of Accelerate, e.g. tensorboard or wandb,aim"))


def find_config(name: str) -> Path:
    """Finds a file of that name, or the shipped recipe: "austen" is `configs/austen.yaml` of this package."""
    shipped = shipped_configs()
    if not Path(name).is_file() and name not in shipped:
        raise ValueError(f"config={name!r} must be a YAML file, or one of {sorted(shipped)}.")
    return Path(name) if Path(name).is_file() else shipped[name]


def shipped_configs() -> dict[str, Path]:
    return {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.yaml"))}


def make_parser() -> ScriptParser:
    parser = script_parser("Train RADD.", ModelArguments, DataArguments, TrainingArguments)
    parser.add_argument(
        "--config",
        metavar="NAME",
        help=f"YAML file of these fields, which flags override: yours, or one of {', '.join(shipped_configs())}",
    )
    return parser


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parses the command line. `--config FILE` stands for the fields of the file; flags on the command line win."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(argv)
    flags = [] if known.config is None else flags_of_file(known.config)
    model_args, data_args, args = make_parser().parse(flags + rest)
    take_from_launcher(args)
    check_fields(asdict(model_args) | asdict(data_args) | asdict(args), RANGES)
    check_held_out(data_args.held_out)
    if args.lr_schedule not in SCHEDULES:
        raise ValueError(f"lr_schedule={args.lr_schedule!r} must be one of {SCHEDULES}.")
    if data_args.validation_config is not None and data_args.validation_dataset is None:
        raise ValueError(f"validation_config={data_args.validation_config!r} needs validation_dataset=.")
    check_compilation(args)
    check_loss_type(args.loss_type)
    check_passes(args.eval_passes)
    check_sampling(args)
    if args.judge is not None and not args.n_samples:
        raise ValueError(f"judge={args.judge!r} has nothing to judge with n_samples=0: leave it out, or write samples.")
    trackers(args.log_with)
    named = any(flag.split("=")[0] == "--output_dir" for flag in rest)
    check_folders(data_args, args, known.config, of_config=not named)
    return model_args, data_args, args


def check_sampling(args: TrainingArguments) -> None:
    """Refuses what `generate` would refuse when the first texts are written."""
    method, steps = args.sampling_method, args.sampling_steps
    try:
        RaddGenerationConfig(method=method, steps=steps)
    except ValueError as error:
        raise ValueError(f"sampling_method={method!r}, sampling_steps={steps}: {error}") from None
    if method == "first_hitting" and steps is not None:
        raise ValueError(
            f"sampling_steps={steps} must be left out with sampling_method={method!r}: an event reveals one token."
        )


def check_folders(data_args: DataArguments, args: TrainingArguments, config: str | None, of_config: bool) -> None:
    """Refuses a run folder within the text, and the settings of a run whose folder is no longer where they say.

    Args:
        of_config: whether `output_dir` is that of the file `config`, and not of a flag.
    """
    output, dataset = Path(args.output_dir).absolute(), Path(data_args.dataset).expanduser().absolute()
    if dataset.is_dir() and output.is_relative_to(dataset):
        raise ValueError(
            f"output_dir={args.output_dir!r} must not lie in dataset={data_args.dataset!r}, whose files are all read."
        )
    folder = None if config is None else find_config(config).absolute().parent
    if of_config and folder is not None and (folder / "checkpoints").is_dir() and folder.resolve() != output.resolve():
        raise ValueError(
            f"config={config} lies in the folder of a run, and its output_dir={args.output_dir!r} is another: pass "
            f"--output_dir {folder} to go on there, or one of your choice."
        )


def flags_of_file(name: str) -> list[str]:
    """Returns the fields of a YAML file as flags.

    Raises:
        ValueError: for a file that is none, or a field that is unknown or of another type, such as a bare `no`, which
            is false in YAML, where text is meant.
    """
    try:
        settings = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config={name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"config={name} must hold fields and values, such as those in configs/.")
    kinds = {
        entry.name: entry.type for kind in (ModelArguments, DataArguments, TrainingArguments) for entry in fields(kind)
    }
    flags = []
    for field_name, value in settings.items():
        if field_name not in kinds:
            near = get_close_matches(str(field_name), kinds, n=1)
            meant = f"; did you mean {near[0]}?" if near else " (--help lists what there is)."
            raise ValueError(f"config={name}: {field_name} is none of the fields{meant}")
        if value is not None:
            flags += [f"--{field_name}", text_of(name, field_name, value, kinds[field_name])]
    return flags


def text_of(file: str, name: str, value: Any, kind: Any) -> str:
    """Returns the value of a field of a file in the form that its flag takes."""
    wanted = next((part for part in get_args(kind) if part is not NoneType), kind)
    if name == "mixed_precision" and value is False:
        return "no"
    if wanted is str and isinstance(value, str):
        return value
    if wanted is bool and isinstance(value, bool):
        return str(value)
    if wanted in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # YAML reads 1e-4, without a point, as text
            number = float(value) if isinstance(value, str) and not value.isdecimal() else value
            if wanted is float or int(number) == number:
                return str(wanted(number))
    must = {bool: "true or false", int: "a whole number", float: "a number", str: "text: put it in quotes"}[wanted]
    raise ValueError(f"config={file}: {name}={value!r} must be {must}.")


def take_from_launcher(args: TrainingArguments) -> None:
    """Settles what `accelerate launch` can be asked for as well as the script.

    Raises:
        ValueError: where both were asked, and for different things.
    """
    args.mixed_precision = launched_precision(args.mixed_precision)
    several = launcher_setting(
        "accumulation", args.accumulation, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", int, ("1", "auto")
    )
    args.accumulation = 1 if several is None else several
    norm = launcher_setting("max_grad_norm", args.max_grad_norm, "ACCELERATE_GRADIENT_CLIPPING", float, ("auto",))
    args.max_grad_norm = 1.0 if norm is None else norm
    backend = launcher_setting("compile_backend", args.compile_backend, "ACCELERATE_DYNAMO_BACKEND", str, ("no",))
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        if args.compile is False:
            raise ValueError(
                f"compile=False contradicts the launcher, which was asked for {backend} (ACCELERATE_DYNAMO_BACKEND): "
                "leave out one of them."
            )
        for setting, ours in {"MODE": "default", "USE_DYNAMIC": "false", "USE_REGIONAL_COMPILATION": "false"}.items():
            asked = os.environ.get(f"ACCELERATE_DYNAMO_{setting}", ours)
            if asked.lower() != ours:
                raise ValueError(f"ACCELERATE_DYNAMO_{setting}={asked} of the launcher must be {ours}, or left out.")
        args.compile = True
    args.compile_backend = backend


def check_compilation(args: TrainingArguments) -> None:
    """Refuses a backend that torch does not have, or that nothing would be compiled by."""
    if args.compile_backend is None:
        return
    if args.compile is False:
        raise ValueError(f"compile_backend={args.compile_backend!r} is of compile=True, and compile=False was given.")
    backends = torch.compiler.list_backends(exclude_tags=())
    if args.compile_backend not in backends:
        raise ValueError(f"compile_backend={args.compile_backend!r} must be one of {backends}.")


def trackers(names: str | None) -> list:
    """Returns the trackers; refuses those that are not installed, which Accelerate would ignore."""
    wanted, installed = (names or "").split(","), [str(tracker) for tracker in get_available_trackers()]
    for name in filter(None, wanted):
        if name not in installed:
            raise ValueError(f"log_with={name!r} must be one of Accelerate's trackers, installed; here: {installed}.")
    return list(filter(None, wanted))
