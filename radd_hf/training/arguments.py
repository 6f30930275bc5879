# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a training run: the fields of three dataclasses. Each is a flag, and a field of a YAML file.

    --config austen --batch_size 64   reads the fields of a file; a flag overrides its field
    accelerate launch                 may set some of them, too; it must not contradict the script

Invalid values are refused here, before anything is loaded. `restart.py` says which arguments may change when a run
resumes.
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
VOCAB_SIZE = 2048  # default size of a BPE trained on the text
# The schedules of transformers that depend on the number of updates only, and need no other arguments.
SCHEDULES = (
    "constant_with_warmup",
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)


# The range of each numeric field. `check_fields` refuses values outside it.
RANGES = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "lora_alpha"), COUNT),
    **dict.fromkeys(("max_steps", "log_steps", "save_steps", "eval_steps", "sample_steps", "sampling_steps"), COUNT),
    **dict.fromkeys(("batch_size", "accumulation", "eval_sequences", "eval_passes", "keep_last"), COUNT),
    **dict.fromkeys(("length", "tokenizing_workers"), COUNT),
    **dict.fromkeys(("n_samples", "lora_rank", "warmup_steps"), COUNT_OR_ZERO),
    **dict.fromkeys(("hidden_dropout", "lora_dropout", "adam_beta1", "adam_beta2", "ema_decay"), FRACTION_BELOW_ONE),
    **dict.fromkeys(("learning_rate", "weight_decay"), NOT_NEGATIVE),
    **dict.fromkeys(("embedding_std", "max_grad_norm"), POSITIVE),
    "timeout": Range(0, 7 * 24 * 60, open_low=True),  # minutes; at most a week
    "vocab_size": Range(LEAST_VOCABULARY, LARGEST),
    "held_out": Range(0, LARGEST),
    "random_length_fraction": FRACTION,
    "adam_epsilon": Range(torch.finfo(torch.float32).tiny, 1),  # the optimizer rounds less to 0, and divides by it
    "seed": Range(0, 2**32 - 1),  # the seeds that NumPy accepts
}


def help_(text: str, values: Sequence[str] = ()) -> dict:
    """Makes the metadata of a field: its help, and the values that a shell completes, see [`ScriptParser`]."""
    return {"help": text, "values": values}


@dataclass
class ModelArguments:
    """The arguments of the model. A field left out comes from `init_from`, or from the paper's small model."""

    init_from: str | None = field(
        default=None, metadata=help_("RADD model to start from: a folder or a Hub repository")
    )
    hidden_size: int | None = field(default=None, metadata=help_("width of the network (small: 768, medium: 1024)"))
    num_hidden_layers: int | None = field(default=None, metadata=help_("number of layers (small: 12, medium: 24)"))
    num_attention_heads: int | None = field(
        default=None, metadata=help_("number of attention heads (small: 12, medium: 16)")
    )
    hidden_dropout: float | None = field(default=None, metadata=help_("dropout probability (0.02 in the paper)"))
    noise_type: str | None = field(
        default=None, metadata=help_("noise schedule, loglinear or geometric; changes the t losses only", NOISE_TYPES)
    )
    embedding_std: float | None = field(
        default=None,
        metadata=help_("initialise the embedding from a normal of this deviation; default: as in the paper"),
    )
    zero_init_residual: bool | None = field(default=None, metadata=help_("start the residual branches at zero"))
    lora_rank: int = field(default=0, metadata=help_("train low-rank adapters of this rank; 0: train all weights"))
    lora_alpha: int = field(default=16, metadata=help_("scale the adapters by alpha / rank"))
    lora_dropout: float = field(default=0.0, metadata=help_("dropout probability in the adapters"))


@dataclass
class DataArguments:
    """The arguments of the data: text, tokenizer and blocks."""

    dataset: str = field(
        default="austen",
        metadata=help_(
            "text to train on: 'austen', a data set of the Hub, or a local file, folder or pattern of .txt, .jsonl, "
            ".json or .parquet"
        ),
    )
    dataset_config: str | None = field(
        default=None, metadata=help_("configuration of a data set of the Hub, or a subfolder of a local folder")
    )
    text_column: str = field(default="text", metadata=help_("column that holds the text"))
    streaming: bool = field(default=False, metadata=help_("read the data while training, without a copy on disk"))
    held_out: float = field(
        default=0.05, metadata=help_("fraction or number of documents to validate on, if there is no such split")
    )
    validation_dataset: str | None = field(
        default=None,
        metadata=help_("data set to validate on instead: its split validation, else test, else all of it"),
    )
    validation_config: str | None = field(default=None, metadata=help_("configuration of validation_dataset"))
    tokenizer: str | None = field(
        default=None,
        metadata=help_("name or folder of the tokenizer; default: that of init_from, or a BPE trained on the text"),
    )
    vocab_size: int | None = field(
        default=None, metadata=help_(f"size of a BPE trained on the text, mask included; default: {VOCAB_SIZE}")
    )
    special_tokens_in_text: bool = field(
        default=False,
        metadata=help_("read a special token spelled in the text, such as EOS, as that token; default: as characters"),
    )
    length: int | None = field(default=None, metadata=help_("tokens in a block; default: that of init_from, or 1024"))
    tokenizing_workers: int | None = field(
        default=None, metadata=help_("processes that tokenise; default: one, with the tokenizer's threads")
    )
    random_length_fraction: float = field(
        default=0.0,
        metadata=help_("fraction of the blocks to cut to a random length, uniform in 1 .. length; try 0.01"),
    )
    separate_documents: bool = field(
        default=False, metadata=help_("let a token attend to its own document only; needs eager or sdpa attention")
    )


@dataclass
class TrainingArguments:
    """The arguments of training, and of the evaluation and sampling in between."""

    output_dir: str = field(default="runs/radd", metadata=help_("run folder; a run that is in it resumes"))
    loss_type: str = field(default="lambda_DCE", metadata=help_(f"training loss, one of {LOSS_TYPES}", LOSS_TYPES))
    max_steps: int = field(default=400_000, metadata=help_("optimizer steps of the whole run"))
    batch_size: int = field(default=512, metadata=help_("sequences in an optimizer step, over all processes"))
    accumulation: int | None = field(
        default=None,
        metadata=help_("forward passes of each process in an optimizer step; default: the launcher's, or 1"),
    )
    learning_rate: float = field(default=3e-4, metadata=help_("learning rate after the warm-up"))
    adam_beta1: float = field(default=0.9, metadata=help_("AdamW's decay of the mean gradient"))
    adam_beta2: float = field(default=0.999, metadata=help_("AdamW's decay of the mean squared gradient"))
    adam_epsilon: float = field(default=1e-8, metadata=help_("AdamW's term that keeps the divisor positive"))
    weight_decay: float = field(default=0.0, metadata=help_("AdamW's weight decay"))
    lr_schedule: str = field(
        default="constant_with_warmup", metadata=help_(f"schedule of the learning rate, one of {SCHEDULES}", SCHEDULES)
    )
    warmup_steps: int = field(default=2500, metadata=help_("steps over which the learning rate rises from 0"))
    max_grad_norm: float | None = field(
        default=None,
        metadata=help_("largest gradient norm, of the loss in nats per sequence; default: the launcher's, or 1.0"),
    )
    ema_decay: float = field(default=0.9999, metadata=help_("decay of the moving average of the weights"))
    mixed_precision: str | None = field(
        default=None, metadata=help_("precision, one of no, bf16, fp16; default: the launcher's, or no", PRECISIONS)
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata=help_(f"attention kernel, one of {', '.join(ATTENTION_IMPLEMENTATIONS)}", ATTENTION_IMPLEMENTATIONS),
    )
    gradient_checkpointing: bool = field(
        default=False, metadata=help_("save memory: recompute activations in the backward pass")
    )
    compile: bool | None = field(
        default=None, metadata=help_("compile the network and its loss by torch.compile; default: on a GPU only")
    )
    compile_backend: str | None = field(default=None, metadata=help_("backend of torch.compile; default: inductor"))
    force: bool = field(default=False, metadata=help_("train even if a step needs more memory than is free"))
    deterministic: bool = field(
        default=False,
        metadata=help_("compute the same bits in every run on the same GPU, also after a restart; slower"),
    )
    seed: int = field(default=0, metadata=help_("seed of everything random"))
    log_steps: int = field(default=50, metadata=help_("steps between two lines of the log"))
    save_steps: int = field(default=1000, metadata=help_("steps between two checkpoints"))
    eval_steps: int = field(default=1000, metadata=help_("steps between two evaluations on held-out text"))
    sample_steps: int = field(default=1000, metadata=help_("steps between two samplings"))
    eval_sequences: int = field(
        default=128, metadata=help_("held-out blocks scored at each evaluation; all of them at the end")
    )
    eval_passes: int = field(default=8, metadata=help_("network evaluations of each scored block"))
    n_samples: int = field(default=8, metadata=help_("texts generated at each sampling; 0: none"))
    sampling_method: str = field(default="tweedie", metadata=help_(f"sampler, one of {METHODS}", METHODS))
    sampling_steps: int | None = field(default=None, metadata=help_("steps of the sampler; default: generate's"))
    judge: str | None = field(
        default=None, metadata=help_("judge model: a causal language model that gives the samples a perplexity")
    )
    keep_last: int = field(default=2, metadata=help_("number of checkpoints to keep"))
    strict: bool = field(
        default=False, metadata=help_("refuse to resume from an older checkpoint if the newest is damaged")
    )
    timeout: float = field(default=10.0, metadata=help_("minutes for which a process waits for the others"))
    log_with: str | None = field(
        default=None, metadata=help_("Accelerate's trackers, such as tensorboard or wandb,aim")
    )


def find_config(name: str) -> Path:
    """Finds the file of that name, else the shipped one: "austen" is `configs/austen.yaml` of this package."""
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
        help=f"YAML file of these fields: yours, or one of {', '.join(shipped_configs())}; flags override it",
    )
    return parser


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parses the command line. `--config FILE` stands for the fields of the file; other flags override them."""
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
        raise ValueError(f"judge={args.judge!r} has nothing to score with n_samples=0: leave it out, or set n_samples.")
    trackers(args.log_with)
    named = any(flag.split("=")[0] == "--output_dir" for flag in rest)
    check_folders(data_args, args, known.config, of_config=not named)
    return model_args, data_args, args


def check_sampling(args: TrainingArguments) -> None:
    """Refuses now what `generate` would refuse at the first sampling."""
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
    """Refuses a run folder inside the data, and the configuration of a run whose folder was moved.

    Args:
        of_config: whether `output_dir` comes from the file `config` and not from a flag.
    """
    output, dataset = Path(args.output_dir).absolute(), Path(data_args.dataset).expanduser().absolute()
    if dataset.is_dir() and output.is_relative_to(dataset):
        raise ValueError(
            f"output_dir={args.output_dir!r} must not lie in dataset={data_args.dataset!r}, whose files are all read."
        )
    folder = None if config is None else find_config(config).absolute().parent
    if of_config and folder is not None and (folder / "checkpoints").is_dir() and folder.resolve() != output.resolve():
        raise ValueError(
            f"config={config} lies in a run folder, but its output_dir={args.output_dir!r} is another one: pass "
            f"--output_dir {folder} to resume there, or another folder."
        )


def flags_of_file(name: str) -> list[str]:
    """Returns the fields of a YAML file as flags.

    Raises:
        ValueError: for a file that is not YAML, an unknown field, or a value of the wrong type. A bare `no` is false in
            YAML, so it is refused for a field of text.
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
            meant = f"; did you mean {near[0]}?" if near else " (--help lists all fields)."
            raise ValueError(f"config={name}: unknown field {field_name}{meant}")
        if value is not None:
            flags += [f"--{field_name}", text_of(name, field_name, value, kinds[field_name])]
    return flags


def text_of(file: str, name: str, value: Any, kind: Any) -> str:
    """Returns the value of a field of the file as its flag takes it."""
    wanted = next((part for part in get_args(kind) if part is not NoneType), kind)
    if name == "mixed_precision" and value is False:
        return "no"
    if wanted is str and isinstance(value, str):
        return value
    if wanted is bool and isinstance(value, bool):
        return str(value)
    if wanted in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # YAML reads 1e-4, which has no point, as text
            number = float(value) if isinstance(value, str) and not value.isdecimal() else value
            if wanted is float or int(number) == number:
                return str(wanted(number))
    must = {bool: "true or false", int: "a whole number", float: "a number", str: "text: put it in quotes"}[wanted]
    raise ValueError(f"config={file}: {name}={value!r} must be {must}.")


def take_from_launcher(args: TrainingArguments) -> None:
    """Settles the arguments that can be given to `accelerate launch` and to the script.

    Raises:
        ValueError: if both were given and differ.
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
    """Refuses a backend that torch does not have, and a backend with compile=False."""
    if args.compile_backend is None:
        return
    if args.compile is False:
        raise ValueError(f"compile_backend={args.compile_backend!r} needs compile=True, but compile=False was given.")
    backends = torch.compiler.list_backends(exclude_tags=())
    if args.compile_backend not in backends:
        raise ValueError(f"compile_backend={args.compile_backend!r} must be one of {backends}.")


def trackers(names: str | None) -> list:
    """Returns the trackers. It refuses one that is not installed, which Accelerate would ignore."""
    wanted, installed = (names or "").split(","), [str(tracker) for tracker in get_available_trackers()]
    for name in filter(None, wanted):
        if name not in installed:
            raise ValueError(f"log_with={name!r} must be an installed tracker of Accelerate, one of {installed}.")
    return list(filter(None, wanted))
