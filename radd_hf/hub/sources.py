# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tells what a folder or a repository holds, and reads the small files in it.

A model, ours or the authors', has a config.json. What else people have at hand (an adapter, a training run, a single
file) is named, with what to do about it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from transformers.utils import cached_file

# Names under which weights lie, in transformers' order; those of JSON name the parts of a model in several.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# Files of a training run of the authors' code, relative to its folder.
RUN_CONFIG = ".hydra/config.yaml"
RUN_CHECKPOINT = "checkpoints-meta/checkpoint.pth"


def read_config(name: str, *, revision: str | None = None, argument: str = "model") -> dict[str, Any]:
    """Reads the config.json of a model, whatever the model.

    Raises:
        ValueError: if there is none; the message says what is there instead and what to do.
    """
    source, folder = f"{argument}={name!r}", Path(name)
    if folder.is_file():
        advice = f"convert it first: radd convert {name} FOLDER" if folder.suffix == ".pth" else "pass its folder"
        raise ValueError(f"{source} is a file, and a model is a folder or a repository: {advice}.")
    settings = read_beside(name, "config.json", revision=revision, argument=argument)
    if settings is None:
        raise ValueError(f"{source} {_what_else(name, revision, argument)}")
    return settings


def _what_else(name: str, revision: str | None, argument: str) -> str:
    """Says what is there where no config.json is, and what to do."""
    folder, adapter = Path(name), read_beside(name, "adapter_config.json", revision=revision, argument=argument)
    if adapter is not None:
        what = f"is a {adapter.get('peft_type', 'PEFT')} adapter of {adapter.get('base_model_name_or_path')!r}"
        if (folder.absolute().parent / "config.json").is_file():  # as our training writes it
            return f"{what}, and the folder around it has the sum: pass that."
        return (
            f"{what}, and not a whole model: add it to that model with peft's PeftModel.from_pretrained and "
            "merge_and_unload, and save the sum with save_pretrained."
        )
    if any((folder / file).exists() for file in (RUN_CONFIG, RUN_CHECKPOINT)):
        return f"is a training run of the authors' code: convert it first: radd convert {name} FOLDER."
    if folder.is_dir():
        return (
            "is a folder without a config.json, so not one of a model; nor is it a training run of the authors' code, "
            f"which has {RUN_CONFIG}."
        )
    return "is no folder here, nor a repository with a config.json that can be reached."


def read_beside(name: str, file: str, *, revision: str | None = None, argument: str = "model") -> Any:
    """Reads a file beside a model: a dictionary from JSON or YAML, else text; None if there is no such file.

    Raises:
        ValueError: for a repository that cannot be reached, or a damaged file.
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
    """Returns where a file of a folder or repository lies on this machine, or None if there is no such file.

    Raises:
        OSError: for a repository that cannot be reached.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        if isinstance(error.__cause__, HFValidationError):  # a path, which is no repository's name
            return None
        raise
    return None if found is None else Path(found)


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """Finds the files of a model's weights: one, or those that an index names; none if there are none.

    Raises:
        OSError: for a repository that cannot be reached, and a file of the index that is absent.
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
                    raise FileNotFoundError(f"{shard}, which {file} names, is absent.")
            return [place for place in found.values() if place is not None]
    return []
