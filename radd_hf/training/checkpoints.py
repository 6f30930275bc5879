# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes the checkpoint folders of a run whole or not at all, finds damaged ones, and deletes old ones.

    checkpoints/step_N/                       a checkpoint, as run.py writes it
    checkpoints/step_N/state/manifest.json    size and SHA-256 of every other file of it; written last
    checkpoints/step_N_damaged/               one that a restart found damaged; nothing reads or deletes it
    checkpoints/partial_N/, deleted_N/        left by a save or a deletion that was killed; removed by the next one

A folder gets the name `step_N` once all of it is on the disk, and loses the name before its first file is deleted.
A link or any other entry is not a checkpoint, and is left alone.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from ..results import sync, write_synced

logger = logging.getLogger(__name__)

MANIFEST, PROGRESS = "state/manifest.json", "state/progress.json"
IDENTITIES = ("run_id", "save_id")  # of the run, kept by restarts, and of one save
STEP, LEFTOVER = r"step_[1-9][0-9]*", r"(partial|deleted)_[1-9][0-9]*"
FILES_AT_ONCE = min(8, os.cpu_count() or 1)  # read in threads: hashing releases the interpreter


def new_identity() -> str:
    return uuid4().hex


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def folders(output: Path, pattern: str) -> list[Path]:
    """Returns the folders of a run's `checkpoints` whose whole name matches; no links and no files."""
    place = output / "checkpoints"
    if not place.exists():
        return []
    with os.scandir(place) as entries:  # raises where `glob` finds nothing in a folder that may not be read
        named = [entry for entry in entries if re.fullmatch(pattern, entry.name)]
        return [place / entry.name for entry in named if entry.is_dir(follow_symlinks=False)]


def all_checkpoints(output: Path) -> list[Path]:
    """Returns the checkpoints of a run, whole or damaged, oldest first."""
    return sorted(folders(output, STEP), key=step_of)


# Writing


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns any exception of a write into an OSError that names the folder: a full disk raises many kinds of them."""
    try:
        yield
    except Exception as error:  # SafetensorError and RuntimeError of the tensors, a bare Exception of tokenizers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{folder} could not be written ({reason}); earlier checkpoints are whole.") from error


def make_partial(partial: Path) -> None:
    """Makes the folder in which a checkpoint is written, with `state/` in it."""
    remove_leftovers(partial.parents[1])
    set_aside(partial, "before")
    (partial / "state").mkdir(parents=True)


def complete(partial: Path, identities: dict[str, str], logged: Path) -> Path:
    """Turns a folder with all its files written into a checkpoint, and returns its path.

    Args:
        partial: `partial_N`, which becomes `step_N`.
        identities: a value for each of `IDENTITIES`; the files of the state hold the same values.
        logged: a file that must be on the disk, too, before the checkpoint has its name.
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
    """Writes a file from memory to the disk, and returns its entry in the manifest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def digest_of(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of the manifest itself, which is in the file beside it."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# Reading


def find_checkpoint(output: Path, strict: bool) -> Path | None:
    """Returns the newest checkpoint that is whole, None where there are no checkpoints.

    Damaged ones that are newer are named in the log, and left as they are; so are links with the name of a step.

    Raises:
        ValueError: if all are damaged, or with `strict` a newer one is.
        OSError: if the folder cannot be read.
    """
    for link in (output / "checkpoints").glob("step_*"):
        if link.is_symlink() and re.fullmatch(STEP, link.name):
            logger.warning("%s is a link, and is left alone", link)
    damaged: dict[str, str] = {}
    whole = None
    for checkpoint in reversed(all_checkpoints(output)):
        damage = damage_of(checkpoint)
        if damage is None:
            whole = checkpoint
            break
        damaged[checkpoint.name] = damage
    said = "; ".join(f"{name} is damaged: {damage}" for name, damage in damaged.items())
    if damaged and whole is None:
        raise ValueError(
            f"output_dir={str(output)!r} has no checkpoint to go on from ({said}). Pass another output_dir, or delete "
            "these folders to begin anew."
        )
    if damaged and strict:
        raise ValueError(
            f"output_dir={str(output)!r}: {said}. Without strict=True the run goes on from {whole}."  # type: ignore[union-attr]
        )
    for name, damage in damaged.items():
        logger.warning("%s is damaged: %s; going on from %s", name, damage, whole.name)  # type: ignore[union-attr]
    return whole


def damage_of(checkpoint: Path) -> str | None:
    """Returns why a checkpoint is damaged, with the file that differs from what was saved; None if it is whole."""
    place = checkpoint / MANIFEST
    if os.path.lexists(place) and not place.is_file():  # a pipe would be waited for
        return f"{MANIFEST} is no file"
    try:
        manifest = read_manifest(checkpoint)
    except FileNotFoundError:
        return f"{MANIFEST} is missing: it is half-deleted, or an older version of radd_hf wrote it"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not as it was written"
    if manifest.step != step_of(checkpoint):
        return f"it is the checkpoint of step {manifest.step}, and was renamed"
    paths = [checkpoint / name for name in manifest.files]
    for look in (damage_of_size, damage_of_bytes):  # sizes cost nothing
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
                return f"{name} has {identity}={found[identity]!r}, and {MANIFEST} {expected!r}: another save wrote it"
    return None


@dataclass(frozen=True)
class Manifest:
    step: int
    identities: dict[str, str]  # by `IDENTITIES`
    files: dict[str, tuple[int, str]]  # bytes and SHA-256, by path in the checkpoint


def read_manifest(checkpoint: Path) -> Manifest:
    """Reads a manifest. Raises a ValueError, KeyError, TypeError or AttributeError if it is not as it was written."""
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
        return "is no file"
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
    """Reads which save wrote a file of the state."""
    if path.suffix == ".json":
        said = json.loads(path.read_text(encoding="utf-8"))
    else:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    return {name: said.get(name) for name in IDENTITIES}


# Renaming and deleting


def set_aside_after(output: Path, step: int) -> None:
    """Renames the checkpoints of later steps, which a restart found damaged, so that none is taken for the newest."""
    for checkpoint in all_checkpoints(output):
        if step_of(checkpoint) > step:
            set_aside(checkpoint, "damaged")


def set_aside(path: Path, why: str) -> None:
    """Renames an entry that is in the way to `NAME_why`, so that it neither ends the run nor is lost."""
    if not os.path.lexists(path):
        return
    names = chain([f"{path.name}_{why}"], (f"{path.name}_{why}_{n}" for n in count(2)))
    aside = next(free for name in names if not os.path.lexists(free := path.with_name(name)))
    path.rename(aside)
    logger.warning("%s is now %s", path, aside.name)


def delete_old(output: Path, keep_last: int) -> None:
    """Deletes all checkpoints but the last; one that cannot be deleted does not end the run."""
    for old in all_checkpoints(output)[:-keep_last]:
        try:
            old.rename(old.with_name(f"deleted_{step_of(old)}"))
        except OSError as error:
            logger.warning("%s could not be deleted: %s", old, error)
    remove_leftovers(output)


def remove_leftovers(output: Path) -> None:
    """Deletes what saves and deletions left that were killed or failed."""
    for leftover in folders(output, LEFTOVER):
        try:
            shutil.rmtree(leftover)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", leftover, error)
