# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes the checkpoint folders of a run whole or not at all, sets damaged ones aside, and deletes old ones.

    checkpoints/step_N/                       a checkpoint, which run.py writes
    checkpoints/step_N/state/manifest.json    the size and SHA-256 of every other file in it; written last
    checkpoints/step_N_damaged/               a checkpoint found damaged by a restart; nothing reads or deletes it
    checkpoints/partial_N/, deleted_N/        left by a save or a deletion that was killed; removed by the next one

A folder gets the name `step_N` when all of it is on disk, and loses the name before its first file is deleted. A link
or any other entry is not a checkpoint, and stays untouched. `hub/runs.py` tells which checkpoints are whole.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..hub.runs import (
    FILES_AT_ONCE,
    MANIFEST,
    STEP,
    all_checkpoints,
    digest_of,
    folders,
    newest_checkpoint,
    step_of,
)
from ..results import sync, write_synced

logger = logging.getLogger(__name__)

LEFTOVER = r"(partial|deleted)_[1-9][0-9]*"


def new_identity() -> str:
    return uuid4().hex


# Writing


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns any exception of a write into an OSError that names the folder. A full disk raises many kinds."""
    try:
        yield
    except Exception as error:  # safetensors raises SafetensorError, torch RuntimeError, tokenizers a bare Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{folder} could not be written ({reason}); earlier checkpoints are whole.") from error


def make_partial(partial: Path) -> None:
    """Makes the folder into which a checkpoint is written, with `state/` in it."""
    remove_leftovers(partial.parents[1])
    set_aside(partial, "before")
    (partial / "state").mkdir(parents=True)


def complete(partial: Path, identities: dict[str, str], logged: Path) -> Path:
    """Turns a folder whose files are all written into a checkpoint, and returns its path.

    Args:
        partial: the folder `partial_N`; it becomes `step_N`.
        identities: a value for each of `IDENTITIES`. The files of the state hold the same values.
        logged: a file that must be on disk before the checkpoint gets its name.
    """
    target = partial.with_name(partial.name.replace("partial", "step"))
    paths = sorted(partial.rglob("*"))
    files = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        entries = dict(
            zip((path.relative_to(partial).as_posix() for path in files), pool.map(seal, files), strict=True)
        )
    manifest = {"step": step_of(target), **identities, "files": entries}
    write_synced(partial / MANIFEST, json.dumps({"manifest": manifest, "sha256": digest_of(manifest)}))
    for folder in (*(path for path in paths if path.is_dir()), partial):
        sync(folder)
    if logged.exists():
        sync(logged)
    set_aside(target, "before")
    partial.replace(target)
    sync(target.parent)
    return target


def seal(path: Path) -> dict[str, Any]:
    """Flushes a file to the disk, and returns its entry in the manifest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# Finding where to resume


def find_checkpoint(output: Path, strict: bool) -> Path | None:
    """Returns the newest whole checkpoint, or None if there are no checkpoints.

    It logs newer checkpoints that are damaged, and links named like a checkpoint. It leaves both untouched.

    Raises:
        ValueError: if all checkpoints are damaged, or, with `strict`, if a newer one is.
        OSError: if the folder cannot be read.
    """
    for link in (output / "checkpoints").glob("step_*"):
        if link.is_symlink() and re.fullmatch(STEP, link.name):
            logger.warning("%s is a link, and stays untouched", link)
    whole, damaged = newest_checkpoint(output)
    said = "; ".join(f"{name} is damaged: {damage}" for name, damage in damaged.items())
    if damaged and whole is None:
        raise ValueError(
            f"output_dir={str(output)!r} has no checkpoint to resume from ({said}). Pass another output_dir, or delete "
            "these folders to start again."
        )
    if damaged and strict:
        raise ValueError(
            f"output_dir={str(output)!r}: {said}. Without strict=True the run resumes from {whole}."  # type: ignore[union-attr]
        )
    for name, damage in damaged.items():
        logger.warning("%s is damaged: %s; resuming from %s", name, damage, whole.name)  # type: ignore[union-attr]
    return whole


# Renaming and deleting


def set_aside_after(output: Path, step: int) -> None:
    """Renames the checkpoints after `step`, which a restart found damaged. Otherwise one would pass for the newest."""
    for checkpoint in all_checkpoints(output):
        if step_of(checkpoint) > step:
            set_aside(checkpoint, "damaged")


def set_aside(path: Path, why: str) -> None:
    """Renames an entry that is in the way to `NAME_why`. So it does not end the run, and is not lost."""
    if not os.path.lexists(path):
        return
    names = chain([f"{path.name}_{why}"], (f"{path.name}_{why}_{n}" for n in count(2)))
    aside = next(free for name in names if not os.path.lexists(free := path.with_name(name)))
    path.rename(aside)
    logger.warning("%s is now %s", path, aside.name)


def delete_old(output: Path, keep_last: int) -> None:
    """Deletes all checkpoints but the last `keep_last`. One that cannot be deleted does not end the run."""
    for old in all_checkpoints(output)[:-keep_last]:
        try:
            old.rename(old.with_name(f"deleted_{step_of(old)}"))
        except OSError as error:
            logger.warning("%s could not be deleted: %s", old, error)
    remove_leftovers(output)


def remove_leftovers(output: Path) -> None:
    """Deletes what was left by saves and deletions that were killed or failed."""
    for leftover in folders(output, LEFTOVER):
        try:
            shutil.rmtree(leftover)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", leftover, error)
