# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Decides what a resumed run takes from its checkpoint, and what from its arguments.

`RULES` has a rule for every argument of training:

    FIXED     must stay the same; a change would make another run, and is refused
    APPLIED   is in the checkpoint, too; the argument replaces that value from the next step on
    FREE      is not in the checkpoint; the argument is used

`config.yaml` is written again at every start, so it always tells how the run continues.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR

from ..hub.runs import PROGRESS, step_of

logger = logging.getLogger(__name__)

FIXED, APPLIED, FREE = "fixed", "applied", "free"

RULES = {
    # The model that the checkpoint's weights belong to.
    "init_from": FIXED,
    "hidden_size": FIXED,
    "num_hidden_layers": FIXED,
    "num_attention_heads": FIXED,
    "hidden_dropout": FIXED,
    "noise_type": FIXED,
    "embedding_std": FIXED,
    "zero_init_residual": FIXED,
    "lora_rank": FIXED,
    "lora_alpha": FIXED,
    "lora_dropout": FIXED,
    # The text: the rows of a step are positions in it. It may have moved to another folder, so `dataset` is compared by
    # the fingerprint of its tokens.
    "dataset": FIXED,
    "dataset_config": FIXED,
    "text_column": FIXED,
    "streaming": FIXED,
    "held_out": FIXED,
    "tokenizer": FIXED,
    "vocab_size": FIXED,
    "special_tokens_in_text": FIXED,
    "length": FIXED,
    "random_length_fraction": FIXED,
    "separate_documents": FIXED,
    "validation_dataset": FREE,
    "validation_config": FREE,
    "tokenizing_workers": FREE,
    # What is minimised, and all that is random.
    "loss_type": FIXED,
    "batch_size": FIXED,
    "seed": FIXED,
    # How it is minimised. These values are in the state of the optimizer, the schedule and the average.
    "learning_rate": APPLIED,
    "adam_beta1": APPLIED,
    "adam_beta2": APPLIED,
    "adam_epsilon": APPLIED,
    "weight_decay": APPLIED,
    "lr_schedule": APPLIED,
    "warmup_steps": APPLIED,
    "max_steps": APPLIED,
    "max_grad_norm": APPLIED,
    "ema_decay": APPLIED,
    # How it is computed.
    "accumulation": FREE,
    "mixed_precision": FREE,
    "attn_implementation": FREE,
    "gradient_checkpointing": FREE,
    "compile": FREE,
    "compile_backend": FREE,
    "deterministic": FREE,
    # What is reported and kept.
    "output_dir": FREE,
    "log_steps": FREE,
    "save_steps": FREE,
    "eval_steps": FREE,
    "sample_steps": FREE,
    "eval_sequences": FREE,
    "eval_passes": FREE,
    "n_samples": FREE,
    "sampling_method": FREE,
    "sampling_steps": FREE,
    "judge": FREE,
    "keep_last": FREE,
    "strict": FREE,
    "log_with": FREE,
    "force": FREE,
    "timeout": FREE,
}


# Arguments that may name a folder; two paths of one folder count as equal.
FOLDERS = ("init_from", "tokenizer")


def is_same_folder(one: str | None, other: str | None) -> bool:
    """Tells whether two paths lead to one folder that exists."""
    return None not in (one, other) and Path(one).is_dir() and Path(one).resolve() == Path(other).resolve()  # type: ignore[arg-type]


def check_settings(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Compares the settings of a run with those of its last checkpoint, and logs the ones that changed.

    Raises:
        ValueError: if a fixed setting has changed, `max_steps` is below the steps done, or a file cannot be read.
    """
    with restoring(checkpoint):
        saved = read_progress(checkpoint).get("settings", {})  # older runs saved no settings
        changed = {name: (saved[name], now) for name, now in settings.items() if saved.get(name, now) != now}
        changed = {name: pair for name, pair in changed.items() if not (name in FOLDERS and is_same_folder(*pair))}
    fixed = {name: pair for name, pair in changed.items() if RULES[name] == FIXED and name != "dataset"}
    refuse_changes(checkpoint, fixed)
    if settings["max_steps"] < step_of(checkpoint):
        raise ValueError(
            f"max_steps={settings['max_steps']} must be at least {step_of(checkpoint)}, the step of {checkpoint}."
        )
    said = [f"{name}={now!r} (was {was!r})" for name, (was, now) in changed.items() if RULES[name] != FIXED]
    if said:
        logger.info("from step %s on: %s", step_of(checkpoint), ", ".join(said))


def check_identity(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares what the settings led to: the model's configuration, the text, the kind of sharding.

    Raises:
        ValueError: if any of them has changed.
    """
    now = json.loads(json.dumps(now))
    before, after = saved["model"], now["model"]
    model = {name: (before.get(name), after.get(name)) for name in before | after}
    others = {"the fingerprint of dataset": "data", "the sharding": "sharding"}
    rest = {name: (saved.get(key, now[key]), now[key]) for name, key in others.items()}
    refuse_changes(checkpoint, {name: pair for name, pair in (model | rest).items() if pair[0] != pair[1]})


def refuse_changes(checkpoint: Path, changed: dict[str, tuple]) -> None:
    if changed:
        wanted = ", ".join(f"{name}={now!r} must be {saved!r}" for name, (saved, now) in changed.items())
        raise ValueError(
            f"output_dir={str(checkpoint.parents[1])!r} holds another run: {wanted}, as in {checkpoint.name}. "
            "Or choose another output_dir."
        )


def read_progress(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))


@contextmanager
def restoring(checkpoint: Path) -> Iterator[None]:
    """Turns any error from reading a checkpoint into a ValueError that names its folder."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
        *(SafetensorError, UnpicklingError),
    ) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{checkpoint} cannot be restored ({reason}). Its files are unchanged since they were saved, perhaps by "
            "another version of radd_hf or of a library. Delete the folder to resume from the checkpoint before it."
        ) from error


def restored_schedule(scheduler: LambdaLR, updates: int) -> LambdaLR:
    """Returns the same schedule after `updates` updates, and sets the learning rate of the optimizer to match."""
    return LambdaLR(scheduler.optimizer, scheduler.lr_lambdas, last_epoch=updates - 1)
