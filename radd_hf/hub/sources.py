# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Finds out what a folder or a repository holds, and reads the small files in it.

A model, ours or the authors', has a config.json. If it is missing, the message names what is there instead (an adapter,
a training run, a single file) and gives advice.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from transformers.utils import cached_file

# Files that weights may be in, in transformers' order. The JSON files list the parts of a model in several files.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# Files of a training run of the authors' code, relative to its folder.
RUN_CONFIG = ".hydra/config.yaml"
RUN_CHECKPOINT = "checkpoints-meta/checkpoint.pth"


def read_config(name: str, *, revision: str | None = None, argument: str = "model") -> dict[str, Any]:
    """Reads the config.json of any model.

    Raises:
        ValueError: if there is none. The message names what is there instead and gives advice.
    """
    source, folder = f"{argument}={name!r}", Path(name)
    if folder.is_file():
        advice = f"Convert it first: radd convert {name} FOLDER" if folder.suffix == ".pth" else "Pass its folder"
        raise ValueError(f"{source} is a file, and a model is a folder or a repository. {advice}.")
    settings = read_beside(name, "config.json", revision=revision, argument=argument)
    if settings is None:
        raise ValueError(_what_else(name, revision, argument))
    return settings


def _what_else(name: str, revision: str | None, argument: str) -> str:
    """Names what is there instead of a config.json, and gives advice."""
    source = f"{argument}={name!r}"
    folder, adapter = Path(name), read_beside(name, "adapter_config.json", revision=revision, argument=argument)
    if adapter is not None:
        what = f"{source} is a {adapter.get('peft_type', 'PEFT')} adapter of {adapter.get('base_model_name_or_path')!r}"
        if (folder.absolute().parent / "config.json").is_file():  # our training writes adapters in this way
            return f"{what}. The folder around it has the model with the adapter added: pass that folder."
        return (
            f"{what}, and not a whole model. Add it to that model with peft's PeftModel.from_pretrained and "
            "merge_and_unload, and save the result with save_pretrained."
        )
    if any((folder / file).exists() for file in (RUN_CONFIG, RUN_CHECKPOINT)):
        return f"{source} is a training run of the authors' code. Convert it first: radd convert {name} FOLDER."
    if folder.is_dir():
        return (
            f"{source} is a folder without a config.json, so it holds no model. It is not a training run of the "
            f"authors' code either, because it has no {RUN_CONFIG}."
        )
    return f"Cannot find {source}: no such folder, and no reachable Hub repository with a config.json."


def read_beside(name: str, file: str, *, revision: str | None = None, argument: str = "model") -> Any:
    """Reads a file beside a model: a dictionary from JSON or YAML, or a text. None: there is no such file.

    Raises:
        ValueError: for a repository that cannot be reached, and for a damaged file.
    """
    parsers: dict[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": yaml.safe_load}
    parse = parsers.get(Path(file).suffix)
    try:
        path = find_beside(name, file, revision)
        if path is None:
            return None
        text = path.read_text(encoding="utf-8")
        content = text if parse is None else parse(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{argument}={name!r}: {file} cannot be read. {error}") from error
    if parse is not None and not isinstance(content, dict):
        raise ValueError(f"{argument}={name!r}: {file} must hold an object; it holds {str(content)[:60]!r}.")
    return content


def find_beside(name: str, file: str, revision: str | None = None) -> Path | None:
    """Returns the path on this machine of a file in a folder or repository. None: there is no such file.

    Raises:
        OSError: for a repository that cannot be reached.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        if isinstance(error.__cause__, HFValidationError):  # the name is a path; no repository can have it
            return None
        raise
    return None if found is None else Path(found)


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """Finds the files of a model's weights: one file, or those that an index lists, or none.

    Raises:
        OSError: for a repository that cannot be reached, and for a file of the index that is missing.
        ValueError: for an index that is damaged.
    """
    for file in WEIGHTS:
        path = find_beside(name, file, revision)
        if path is not None and path.suffix != ".json":
            return [path]
        if path is not None:
            try:
                shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
            except (KeyError, AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"{file} has no 'weight_map' of names and files: {error}") from error
            found = {shard: find_beside(name, shard, revision) for shard in shards}
            for shard, place in found.items():
                if place is None:
                    raise FileNotFoundError(f"{shard} is missing; {file} lists it.")
            return [place for place in found.values() if place is not None]
    return []
