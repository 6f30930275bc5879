"""A run that was killed ends as one that was not, bit for bit; of one process and of two.

`RADD_KILLS` is how often each run is killed: 3 in `make test`, more in `make torture`.
"""

import os
import random
import subprocess
import time

import pytest
from safetensors.torch import load_file

from support.launches import QUIET, command, kill
from support.outcomes import outcome, same
from support.paths import ROOT

KILLS = int(os.environ.get("RADD_KILLS", "3"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tiny_config, tmp_path, processes):
    steps = 30 * (KILLS + 2)
    # Checkpoints fall between two lines of the log and in the middle of an epoch; dropout is on.
    fixed = {"max_steps": steps, "save_steps": 5, "log_steps": 7, "eval_steps": 50, "hidden_dropout": 0.1}
    path, script = tiny_config(**fixed), str(ROOT / "train_accelerate.py")

    def start(name: str) -> subprocess.Popen:
        arguments = command(processes, script, "--config", path, "--output_dir", str(tmp_path / name))
        log = (tmp_path / f"{name}.log").open("w")
        return subprocess.Popen(arguments, cwd=ROOT, env=QUIET, stdout=log, stderr=log)

    assert start("whole").wait() == 0, (tmp_path / "whole.log").read_text()[-3000:]
    chance, checkpoints = random.Random(processes), tmp_path / "killed" / "checkpoints"
    last, while_saving = 0, 0
    for number in range(KILLS):
        process = start("killed")
        wanted, deadline = last + chance.randint(1, 30), time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            reached = max((int(p.name[5:]) for p in checkpoints.glob("step_*")), default=0)
            saving = any(checkpoints.glob("partial_*"))
            # every other time as soon as a checkpoint is being written, else at some moment between two
            if reached >= wanted and (saving or number % 2):
                break
            time.sleep(0.0005)
        assert process.poll() is None, (tmp_path / "killed.log").read_text()[-3000:]
        time.sleep(chance.random() * (0.01 if number % 2 == 0 else 0.1))
        kill(process)
        while_saving += any(checkpoints.glob("partial_*"))
        whole = sorted(int(path.name[5:]) for path in checkpoints.glob("step_*"))
        assert whole, "no whole checkpoint is left"
        assert whole[-1] >= max(last, wanted)
        last = whole[-1]
        load_file(checkpoints / f"step_{last}" / "model.safetensors")
    assert start("killed").wait() == 0, (tmp_path / "killed.log").read_text()[-3000:]
    assert same(outcome(tmp_path / "killed", steps), outcome(tmp_path / "whole", steps))
    print(f"processes={processes}: killed {KILLS} times, {while_saving} of them while a checkpoint was written")
