"""The training script: each loss learns, a checkpoint is a model, a restart goes on, EMA follows the paper's law."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from launching import metrics
from safetensors.torch import load_file
from transformers import AutoTokenizer

import eval_ppl
import train_accelerate
from radd_hf import RaddForMaskedLM
from radd_hf.ema import Ema, ema_decay
from radd_hf.losses import LOSS_TYPES


@pytest.fixture
def run(tmp_path, tiny_config):
    """Trains with the tiny settings and the given ones; returns the run folder."""

    def train(name="run", **settings):
        flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        train_accelerate.main(["--config", tiny_config(), "--output_dir", str(tmp_path / name), *flags])
        return tmp_path / name

    return train


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_trains(run, loss_type):
    folder = run(loss_type=loss_type, max_steps=60, log_steps=20, eval_steps=100, save_steps=100)
    losses = [record["nats_per_token"] for record in metrics(folder) if "nats_per_token" in record]
    assert losses[-1] < losses[0] - 0.5
    assert metrics(folder)[-1]["final_bits_per_byte"] > 0


def test_a_checkpoint_is_a_model_with_its_tokenizer_and_evaluates(run, tiny_text, tmp_path, capsys):
    checkpoint = run() / "checkpoints" / "step_8"
    model = RaddForMaskedLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer) == model.config.vocab_size == 320
    assert tokenizer.mask_token_id == model.config.mask_token_id
    result = tmp_path / "result.json"
    eval_ppl.main(["--model", str(checkpoint), "--dataset", str(tiny_text), "--passes", "2", "--output", str(result)])
    assert "bits per byte" in capsys.readouterr().out
    assert json.loads(result.read_text())["n_bytes"] == len(tiny_text.read_bytes())


def test_a_run_started_again_goes_on_from_its_last_whole_checkpoint(run, tmp_path):
    whole = run("whole")
    shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_8")
    (tmp_path / "again" / "checkpoints" / "partial_8").mkdir()  # as a killed save leaves it
    again = run("again")
    for weights in ("model.safetensors", "state/model.safetensors"):  # the average, and the weights themselves
        ours, theirs = (load_file(folder / "checkpoints" / "step_8" / weights) for folder in (again, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (again / "checkpoints" / "partial_8").exists()


def test_a_run_is_not_continued_with_another_model(run):
    run()
    with pytest.raises(ValueError, match=r"holds another run; .*'hidden_size': 32.*'hidden_size': 64"):
        run(hidden_size=64)
    with pytest.raises(ValueError, match=r"differ in \{'batch_size': \(8, 4\)\}"):
        run(batch_size=4)
    with pytest.raises(ValueError, match=r"differ in \{'tokenizer': \(320, 400\)\}"):
        run(vocab_size=400)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_steps": 0}, "log_steps=0 must be at least 1"),
        ({"keep_last": 0}, "keep_last=0 must be at least 1"),
        ({"batch_size": -1}, "batch_size=-1 must be at least 1"),
        ({"accumulation": 3}, r"batch_size=8 must be a multiple of 1 processes x accumulation=3"),
        ({"loss_type": "elbo"}, "loss_type='elbo' must be one of"),
        ({"dataset": "/no/such/text"}, "dataset='/no/such/text' must be"),
        ({"ema_decay": 1.5}, r"ema_decay=1\.5 must lie in"),
        ({"length": 10**6}, "length=1000000 is longer than the data"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(run, settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_a_launchers_world_that_accelerate_does_not_share_is_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # without the rest of what a launcher sets
    monkeypatch.setattr(train_accelerate, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but Accelerate runs 1 processes"):
        run()
    with pytest.raises(ValueError, match="WORLD_SIZE=2"):
        eval_ppl.main(["--model", "none"])


def test_an_empty_configuration_file_is_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ValueError, match="must hold fields and values"):
        train_accelerate.main([f"--config={tmp_path / 'empty.yaml'}"])


def test_a_loss_that_is_not_finite_ends_the_run(run, monkeypatch):
    monkeypatch.setattr(RaddForMaskedLM, "_nll", lambda self, hidden, targets: hidden.sum(dim=-1) * float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        run()


def test_the_command_line_wins_over_the_file_and_unknown_fields_are_errors(run, tmp_path):
    resolved = yaml.safe_load((run(max_steps=1) / "config.yaml").read_text())
    assert (resolved["max_steps"], resolved["batch_size"]) == (1, 8)
    with pytest.raises(ValueError, match="--batchsize"):
        run(batchsize=4)


def test_only_the_last_checkpoints_are_kept(run):
    folder = run(save_steps=2, keep_last=2)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_6", "step_8"]


def test_every_epoch_visits_every_block_once():
    rows = torch.cat([train_accelerate.batch_rows(step, 4, 10, seed=0) for step in range(5)])  # two epochs
    first, second = rows[:10], rows[10:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)


def test_the_average_follows_the_papers_law_to_the_last_bit():
    """a <- a - (1 - d_n) (a - w) with d_n = min(decay, (1 + n) / (10 + n)), n = 1, 2, ...; a starts at w."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(7, 5)
    ema = Ema(model, 0.9)
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    for n in range(1, 100):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn(value.shape, generator=generator))
        ema.update(model)
        one_minus_decay = 1.0 - min(0.9, (1 + n) / (10 + n))
        for name, value in model.named_parameters():
            expected[name].sub_(one_minus_decay * (expected[name] - value.detach()))
    assert all(torch.equal(value, expected[name]) for name, value in ema.state_dict().items())


def test_the_averages_take_the_weights_place_and_give_it_back_to_the_bit():
    model = torch.nn.Linear(3, 2)
    ema, before = Ema(model, 0.9), {name: value.clone() for name, value in model.state_dict().items()}
    ema.averages["bias"].fill_(7.0)
    with ema.applied(model):
        assert not model.training
        assert (model.bias == 7).all()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (ema.averages["bias"] == 7).all()


def test_the_decay_warms_up():
    assert ema_decay(0.9999, 1) == 2 / 11
    assert ema_decay(0.9999, 10**9) == 0.9999
    with pytest.raises(ValueError, match=r"ema_decay=1\.0"):
        Ema(torch.nn.Linear(1, 1), 1.0)
