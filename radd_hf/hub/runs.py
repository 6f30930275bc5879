# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the folder of a training run: finds its checkpoints and tells which of them are whole.

    checkpoints/step_N/                       a checkpoint: a model, and the state from which training resumes
    checkpoints/step_N/state/manifest.json    size and SHA-256 of every other file in it; written last

A checkpoint is whole if its files match its manifest. A run folder can be passed as a model; it means the newest whole
checkpoint of the run. `training/run.py` and `training/checkpoints.py` write these files.
"""

import hashlib
import json
import logging
import os
import re
import shlex
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from ..configuration_radd import RaddConfig
from ..text_radd import encode_with_blanks

logger = logging.getLogger(__name__)

MANIFEST, PROGRESS = "state/manifest.json", "state/progress.json"
IDENTITIES = ("run_id", "save_id")  # the run's, which restarts keep, and that of a single save
STEP = r"step_[1-9][0-9]*"
# The text with a blank in the shell command that `generate_command` shows.
EXAMPLE, EXAMPLE_LENGTH = "It was [MASK:12] of spring", 128
FILES_AT_ONCE = min(8, os.cpu_count() or 1)  # threads that read; hashing releases the interpreter's lock


def newest_model(name: str, argument: str = "model") -> str:
    """Returns the path of the newest whole checkpoint if `name` is a run folder, and any other name unchanged.

    The log says which checkpoint it is.

    Args:
        argument: the user's name for the argument `name`, for messages.

    Raises:
        ValueError: for a run without a whole checkpoint.
    """
    folder = Path(name)
    if not is_run(folder):
        return name
    whole, damaged = newest_checkpoint(folder)
    said = "; ".join(f"{step} is damaged: {damage}" for step, damage in damaged.items())
    if whole is None:
        state = f"{said}. To take one as it is, pass its folder." if said else "none has been saved yet."
        raise ValueError(f"{argument}={name!r} is the folder of a training run without a whole checkpoint: {state}")
    logger.warning(
        "%s=%r is the folder of a training run: %s is its newest %scheckpoint%s",
        *(argument, name, whole, "whole " if damaged else "", f" ({said})" if damaged else ""),
    )
    return _as_argument(str(whole))


def _as_argument(path: str) -> str:
    """Returns a path in a form that no command mistakes for an option."""
    return f"./{path}" if path.startswith("-") else path


def generate_command(model: str, tokenizer: PreTrainedTokenizerBase, config: RaddConfig) -> str:
    """Returns a shell command that fills `EXAMPLE` with a model. If the model cannot encode it, it generates a text."""
    length, mask = config.max_position_embeddings, cast(int, config.mask_token_id)
    try:
        fits = len(encode_with_blanks(EXAMPLE, tokenizer, mask).ids) <= length
    except ValueError:
        fits = False
    asked = shlex.quote(EXAMPLE) if fits else f"--length {min(length, EXAMPLE_LENGTH)}"
    return f"radd generate {shlex.quote(_as_argument(model))} {asked}"


def is_run(folder: Path) -> bool:
    """Tells whether a folder holds a training run of this package, and not a model."""
    place = folder / "checkpoints"
    if (folder / "config.json").exists() or not place.is_dir():
        return False
    return (folder / "config.yaml").is_file() or bool(all_checkpoints(folder))


def step_of(checkpoint: Path) -> int:
    """Returns the step in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


def folders(output: Path, pattern: str) -> list[Path]:
    """Returns the folders in a run's `checkpoints` whose whole name matches the pattern, without links and files."""
    place = output / "checkpoints"
    if not place.exists():
        return []
    with os.scandir(place) as entries:  # raises an error for an unreadable folder, where `glob` finds nothing
        named = [entry for entry in entries if re.fullmatch(pattern, entry.name)]
        return [place / entry.name for entry in named if entry.is_dir(follow_symlinks=False)]


def all_checkpoints(output: Path) -> list[Path]:
    """Returns the checkpoints of a run, whole or damaged, oldest first."""
    return sorted(folders(output, STEP), key=step_of)


def newest_checkpoint(output: Path) -> tuple[Path | None, dict[str, str]]:
    """Returns the newest whole checkpoint of a run, or None, and why each newer one is damaged, by its name.

    Raises:
        OSError: if the folder cannot be read.
    """
    damaged: dict[str, str] = {}
    for checkpoint in reversed(all_checkpoints(output)):
        damage = damage_of(checkpoint)
        if damage is None:
            return checkpoint, damaged
        damaged[checkpoint.name] = damage
    return None, damaged


def damage_of(checkpoint: Path) -> str | None:
    """Returns why a checkpoint is damaged, with the file that differs from the manifest. None: it is whole."""
    place = checkpoint / MANIFEST
    if os.path.lexists(place) and not place.is_file():  # reading a pipe would block
        return f"{MANIFEST} is not a file"
    try:
        manifest = read_manifest(checkpoint)
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the checkpoint is half-deleted, or an older version of radd_hf wrote it"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} was changed after it was written"
    if manifest.step != step_of(checkpoint):
        return f"it was renamed: {MANIFEST} says step {manifest.step}"
    paths = [checkpoint / name for name in manifest.files]
    for look in (damage_of_size, damage_of_bytes):  # sizes are cheap to compare
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for name, damage in zip(manifest.files, pool.map(look, paths, manifest.files.values()), strict=True):
                if damage:
                    return f"{name} {damage}"
    for name in (PROGRESS, *(name for name in manifest.files if re.fullmatch(r"state/\w+\.safetensors", name))):
        try:
            found = identities_in(checkpoint / name)
        except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
            return f"{name} cannot be read ({error})"
        for identity, expected in manifest.identities.items():
            if found[identity] != expected:
                return (
                    f"{name} has {identity}={found[identity]!r}, and {MANIFEST} has {expected!r}: another save wrote it"
                )
    return None


@dataclass(frozen=True)
class Manifest:
    step: int
    identities: dict[str, str]  # by `IDENTITIES`
    files: dict[str, tuple[int, str]]  # bytes and SHA-256, by path in the checkpoint


def read_manifest(checkpoint: Path) -> Manifest:
    """Reads a manifest. Raises a ValueError, KeyError, TypeError or AttributeError if it was changed."""
    read = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    said = read["manifest"]
    if digest_of(said) != read["sha256"]:
        raise ValueError("the manifest has another digest")
    files = {name: (entry["bytes"], entry["sha256"]) for name, entry in said["files"].items()}
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in files):
        raise ValueError("the manifest names files outside of the checkpoint")
    return Manifest(said["step"], {name: said[name] for name in IDENTITIES}, files)


def damage_of_size(path: Path, entry: tuple[int, str]) -> str | None:
    expected, _ = entry
    try:
        status = path.stat()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "is not a file"
    return None if status.st_size == expected else f"has {status.st_size} bytes, and was saved with {expected}"


def damage_of_bytes(path: Path, entry: tuple[int, str]) -> str | None:
    _, expected = entry
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == expected else f"has another SHA-256 ({found[:12]}...) than was saved ({expected[:12]}...)"


def identities_in(path: Path) -> dict[str, str | None]:
    """Reads from a file of the state which run and which save wrote it."""
    if path.suffix == ".json":
        said = json.loads(path.read_text(encoding="utf-8"))
    else:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    return {name: said.get(name) for name in IDENTITIES}


def digest_of(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of the manifest. The file of the manifest has it, too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
