# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Makes the folder of a training run without training."""

import json
from pathlib import Path
from typing import Any

from radd_hf.hub.runs import PROGRESS
from radd_hf.training.checkpoints import complete, make_partial


def make_run(folder: Path, models: dict[int, Any], tokenizer: Any) -> Path:
    """Makes a run with a whole checkpoint of each model, by step."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("max_steps: 100\n", encoding="utf-8")
    for step, model in models.items():
        partial, identities = folder / "checkpoints" / f"partial_{step}", {"run_id": "a", "save_id": str(step)}
        make_partial(partial)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / PROGRESS).write_text(json.dumps({"step": step} | identities), encoding="utf-8")
        complete(partial, identities, logged=folder / "metrics.jsonl")
    return folder
