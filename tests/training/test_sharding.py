"""The script under FSDP2, and under ZeRO-2 where DeepSpeed is installed, trains, saves and resumes as in one process.

By the launch files themselves, with two processes on the CPU. Accelerate shards on accelerators alone, so a script in
between tells it that the CPU is one.
"""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from radd_hf.training import train
from support.damage import Payload, rewrite_manifest
from support.launches import QUIET, free_port, metrics
from support.paths import ROOT

ON_CPUS = """
import os
import runpy
import sys
import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *arguments: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PATHS = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
CPUS_ALONE = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": PATHS}
has_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="see `make deepspeed`")


@pytest.mark.parametrize("name", ["fsdp2", pytest.param("deepspeed_zero2", marks=has_deepspeed)])
def test_a_sharded_run_trains_saves_and_resumes_as_one_process_does(tiny_config, tmp_path, name):
    settings = {"hidden_dropout": 0.0, "log_steps": 1, "n_samples": 3}
    config, one, sharded = tiny_config(**settings), tmp_path / "one", tmp_path / "sharded"
    train.main(["--config", config, "--output_dir", str(one)])
    (tmp_path / "on_cpus.py").write_text(ON_CPUS)

    def launch(output=sharded) -> None:
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(ROOT / f"configs/accelerate/{name}.yaml"), "--num_processes", "2"]
        command += ["--main_process_port", str(free_port()), str(tmp_path / "on_cpus.py")]
        command += [str(ROOT / "train_accelerate.py"), "--config", config, "--output_dir", str(output)]
        # As on GPUs, by default; under FSDP2 each layer by itself.
        compiled = ["--compile", "true", "--compile_backend", "aot_eager"] if name == "fsdp2" else []
        command += ["--accumulation", "2", *compiled]
        finished = subprocess.run(command, env=QUIET | CPUS_ALONE, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr[-3000:]

    def outcome() -> tuple:
        records = [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in metrics(sharded)]
        return records, load_file(sharded / "checkpoints/step_8/state/ema.safetensors")

    launch()
    state = "checkpoints/step_8/model.safetensors"
    assert json.loads((sharded / "checkpoints/step_8/config.json").read_text())["auto_map"]["AutoModel"]

    def assert_the_same(run) -> None:
        for ours, theirs in zip(metrics(run), metrics(one), strict=True):
            assert ours.keys() == theirs.keys()
            for figure in {"nats_per_token", "validation_nats_per_token", "final_nats_per_token"} & ours.keys():
                assert ours[figure] == pytest.approx(theirs[figure], rel=1e-4)
        for key, weight in load_file(one / state).items():
            torch.testing.assert_close(load_file(run / state)[key], weight, rtol=1e-3, atol=1e-4)

    assert_the_same(sharded)
    records, averages = outcome()
    shutil.rmtree(sharded / "checkpoints" / "step_8")
    launch()
    assert "resumed from" in (sharded / "train.log").read_text()
    again, averages_again = outcome()
    assert again == records
    assert all(torch.equal(averages_again[key], average) for key, average in averages.items())
    if name != "fsdp2":
        return

    moved = {}  # to the other way of computing, in the middle of the run
    for run in (one, sharded):
        moved[run] = shutil.copytree(run, tmp_path / f"{run.name}_moved")
        shutil.rmtree(moved[run] / "checkpoints/step_8")
    train.main(["--config", config, "--output_dir", str(moved[sharded])])
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):  # where Accelerate reads a pickle
        (moved[one] / "checkpoints/step_4/state" / part).mkdir()
        planted = moved[one] / "checkpoints/step_4/state" / part / ".metadata"
        planted.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    launch(moved[one])
    assert not (tmp_path / "ran").exists()
    for run in moved.values():
        assert "resumed from" in (run / "train.log").read_text()
        assert_the_same(run)

    # Under its own name, with an identity that the manifest has: DTensors are read from it as any others are.
    planted = moved[one] / "checkpoints/step_8/state/optimizer.safetensors"
    planted.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    rewrite_manifest(planted.parents[1])
    shutil.rmtree(moved[one] / "checkpoints/step_4")
    with pytest.raises(AssertionError, match=r"step_8 is damaged: state/optimizer\.safetensors cannot be read"):
        launch(moved[one])
    assert not (tmp_path / "ran").exists()
