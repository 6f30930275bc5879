"""What a user does with the scripts, from the first command to a text, in processes of their own."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from radd_hf.data.documents import load_documents
from support.launches import QUIET, WITHOUT_RADD_HF, free_port, kill, metrics
from support.paths import ROOT

FILL_A_GAP = """
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = model.generate(prefix="Anne", suffix=" Captain Wentworth.", length=32, tokenizer=tokenizer)
print(tokenizer.decode(ids[0]))
"""


@pytest.fixture
def paragraphs(tmp_path):
    """A data set of its own: the paragraphs of a novel, a line of JSON each."""
    text = load_documents("austen", "validation")[0]["text"]
    path = tmp_path / "paragraphs.jsonl"
    path.write_text("".join(json.dumps({"paragraph": part}) + "\n" for part in text.split("\n\n") if part.strip()))
    return path


def test_a_model_is_trained_killed_resumed_evaluated_and_writes(tmp_path, paragraphs):
    run, script = tmp_path / "run", str(ROOT / "train_accelerate.py")
    data = {"dataset": paragraphs, "text_column": "paragraph", "length": 32, "vocab_size": 400}
    steps = {"max_steps": 160, "save_steps": 20, "eval_steps": 80, "sample_steps": 80, "log_steps": 20}
    flags = [str(part) for name, value in (data | steps).items() for part in (f"--{name}", value)]
    launch_file = str(ROOT / "configs/accelerate/two_cpus.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", launch_file]

    def start() -> subprocess.Popen:
        arguments = [*launcher, "--main_process_port", str(free_port()), script]
        arguments += ["--config", str(ROOT / "configs/tiny.yaml"), "--output_dir", str(run), *flags]
        log = (tmp_path / "log.txt").open("a")
        environment = QUIET | {"ACCELERATE_USE_CPU": "true"}
        return subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=log, stderr=log)

    # Trained by two processes, killed after some steps, started again.
    process, deadline = start(), time.monotonic() + 120
    while not (run / "checkpoints" / "step_40").exists() and time.monotonic() < deadline:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        time.sleep(0.01)
    kill(process)
    assert start().wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert "resumed from" in (run / "train.log").read_text()
    records, checkpoint = metrics(run), run / "checkpoints" / "step_160"
    losses = [record["nats_per_token"] for record in records if "nats_per_token" in record]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.3
    assert yaml.safe_load((run / "config.yaml").read_text())["text_column"] == "paragraph"
    assert all((run / "samples" / f"step_{step}" / "1.txt").stat().st_size for step in (80, 160))

    # Its validation text is scored again by the other script: the very figure, in one process and from the folder.
    held_out = load_documents(str(paragraphs), "validation", text_column="paragraph")
    held_out.to_json(tmp_path / "held_out.jsonl")
    command = [sys.executable, str(ROOT / "eval_ppl.py"), "--model", str(checkpoint), "--passes", "8"]
    command += ["--dataset", str(tmp_path / "held_out.jsonl"), "--output", str(tmp_path / "result.json")]
    subprocess.run(command, cwd=tmp_path, env=QUIET, check=True)
    result = json.loads((tmp_path / "result.json").read_text())
    for name in ("n_tokens", "n_bytes", "nats_per_token", "standard_error", "bits_per_byte"):
        assert result[name] == pytest.approx(records[-1][f"final_{name}"], rel=1e-4)

    # Where radd_hf is not installed, the folder's own code fills a gap.
    command = [sys.executable, "-c", WITHOUT_RADD_HF + FILL_A_GAP, str(checkpoint)]
    text = subprocess.run(command, cwd=tmp_path, env=QUIET, capture_output=True, text=True, check=True).stdout
    assert text.startswith("Anne")
    assert text.rstrip().endswith(" Captain Wentworth.")
