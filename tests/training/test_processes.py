"""Several processes, with and without accumulation, train what one does."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from radd_hf.losses import LOSS_TYPES
from support.launches import QUIET, command, metrics
from support.paths import ROOT

# Trains with each loss and each number of forwards a step in turn, in every process: starting them is what takes time.
EVERY_LOSS = """
import json
import sys
from pathlib import Path
import torch
from radd_hf.training import train
from accelerate.state import AcceleratorState
from radd_hf.losses import LOSS_TYPES
from torch.nn.parallel import DistributedDataParallel

synchronised = []
forward = DistributedDataParallel.forward

def recorded(self, *args, **kwargs):
    synchronised.append(self.require_backward_grad_sync)
    return forward(self, *args, **kwargs)

DistributedDataParallel.forward = recorded
config, *accumulations = sys.argv[1:]
for output in accumulations:
    name, accumulation = output.split("=")
    for loss_type in LOSS_TYPES:
        run = ["--config", config, "--output_dir", f"{name}/{loss_type}", "--loss_type", loss_type]
        compiled = ["--compile", "true", "--compile_backend", "aot_eager"] if "compiled" in name else []
        train.main([*run, *compiled, "--accumulation", accumulation])
        Path(f"{name}/{loss_type}/synchronised.json").write_text(json.dumps(synchronised))
        synchronised.clear()
        AcceleratorState._reset_state()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def losses(folder: Path) -> list[float]:
    return [record["nats_per_token"] for record in metrics(folder) if "nats_per_token" in record]


def test_two_processes_and_accumulation_train_what_one_process_does_with_every_loss(tiny_config, tmp_path):
    script = tmp_path / "every_loss.py"
    script.write_text(EVERY_LOSS)
    environment = QUIET | {"PYTHONPATH": str(ROOT)}
    settings = {"hidden_dropout": 0.0, "max_steps": 20, "save_steps": 20, "eval_steps": 20, "log_steps": 1}
    settings |= {"sample_steps": 20, "n_samples": 3}
    for processes, runs in ((1, ["one=1"]), (2, ["two=1", "two_twice=2", "two_compiled=1"])):
        arguments = (str(script), tiny_config(**settings), *(str(tmp_path / run) for run in runs))
        subprocess.run(command(processes, *arguments), cwd=ROOT, env=environment, check=True, capture_output=True)
    for loss_type in LOSS_TYPES:
        one = tmp_path / "one" / loss_type
        for name, synchronised in (("two", [True]), ("two_twice", [False, True]), ("two_compiled", [True])):
            other = tmp_path / name / loss_type
            assert json.loads((other / "synchronised.json").read_text()) == synchronised * 20, "once a step"
            assert losses(other) == pytest.approx(losses(one), rel=1e-4)
            assert metrics(other)[-1]["final_nats_per_token"] == pytest.approx(
                metrics(one)[-1]["final_nats_per_token"], rel=1e-4
            )
            for weights in ("model.safetensors", "state/model.safetensors"):
                ours, theirs = (load_file(folder / "checkpoints" / "step_20" / weights) for folder in (other, one))
                for key, value in theirs.items():
                    torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4)
            texts = {path.name: path.read_text() for path in (one / "samples/step_20").iterdir()}
            assert {path.name: path.read_text() for path in (other / "samples/step_20").iterdir()} == texts
            assert len(texts) == 3
