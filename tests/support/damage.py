# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Puts foreign files into a checkpoint, with a manifest that matches them."""

import json
from pathlib import Path

from radd_hf.hub.runs import MANIFEST, digest_of, read_manifest
from radd_hf.training.checkpoints import seal
from support.paths import contents


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def rewrite_manifest(checkpoint: Path) -> None:
    """Rewrites the manifest to match the present files."""
    manifest = read_manifest(checkpoint)
    files = {
        name: {"bytes": len(data), "sha256": seal(checkpoint / name)["sha256"]}
        for name, data in contents(checkpoint).items()
        if name != MANIFEST
    }
    said = {"step": manifest.step, **manifest.identities, "files": files}
    (checkpoint / MANIFEST).write_text(json.dumps({"manifest": said, "sha256": digest_of(said)}))
