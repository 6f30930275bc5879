"""The training script: each loss learns, a checkpoint is a model, a restart goes on, EMA follows the paper's law."""

import json
import logging
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.tracking import GeneralTracker
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.data.documents import train_tokenizer
from radd_hf.evaluation import perplexity
from radd_hf.evaluation.quality import judge, load_judge
from radd_hf.hub.runs import damage_of
from radd_hf.losses import LOSS_TYPES
from radd_hf.training import adapters, arguments, checkpoints, train
from radd_hf.training import run as run_module
from radd_hf.training.averages import Ema, ema_decay
from radd_hf.training.run import Run
from support.launches import QUIET, TINY, command, metrics
from support.paths import ROOT
from support.texts import SENTENCES
from support.toys import random_model


@pytest.fixture
def run(tmp_path, tiny_config):
    """Trains with the tiny settings and the given ones; returns the run folder."""

    def run_folder(name="run", **settings):
        flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        train.main(["--config", tiny_config(), "--output_dir", str(tmp_path / name), *flags])
        return tmp_path / name

    return run_folder


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_trains(run, loss_type):
    folder = run(loss_type=loss_type, max_steps=60, log_steps=20, eval_steps=100, save_steps=100)
    losses = [record["nats_per_token"] for record in metrics(folder) if "nats_per_token" in record]
    assert losses[-1] < losses[0] - 0.5
    assert metrics(folder)[-1]["final_bits_per_byte"] > 0


def test_documents_and_held_out_text_that_spell_special_tokens_train_with_finite_losses(run, tmp_path):
    lines = [json.dumps({"text": f"{number}. <|mask|> {SENTENCES}<|endoftext|>"}) + "\n" for number in range(60)]
    (tmp_path / "spelled.jsonl").write_text("".join(lines))
    logged = metrics(run(dataset=tmp_path / "spelled.jsonl", held_out=0.2))
    figures = [
        record[name] for record in logged for name in ("nats_per_token", "final_nats_per_token") if name in record
    ]
    assert len(figures) > 1
    assert all(map(math.isfinite, figures))


def test_a_checkpoint_is_a_model_with_its_tokenizer_and_evaluates(run, tiny_text, tmp_path, capsys):
    checkpoint = run() / "checkpoints" / "step_8"
    model = RaddForMaskedLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer) == model.config.vocab_size == 320
    assert tokenizer.mask_token_id == model.config.mask_token_id
    result = tmp_path / "result.json"
    perplexity.main(["--model", str(checkpoint), "--dataset", str(tiny_text), "--passes", "2", "--output", str(result)])
    assert "bits per byte" in capsys.readouterr().out
    assert json.loads(result.read_text())["n_bytes"] == len(tiny_text.read_bytes())


@pytest.fixture(scope="session")
def tiny_stream(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("stream")
    for part in range(2):
        lines = [json.dumps({"text": f"{part}, {number}. {SENTENCES}"}) + "\n" for number in range(30)]
        (folder / f"{part}.jsonl").write_text("".join(lines))
    return str(folder)


@pytest.mark.parametrize("kind", ["blocks", "stream", "adapters", "compiled"])
def test_a_run_started_again_goes_on_from_its_last_whole_checkpoint(
    run, tmp_path, kind, tiny_stream, tiny_start, tiny_tokenizer
):
    settings = {
        "blocks": {},
        "stream": {"dataset": tiny_stream, "streaming": True, "held_out": 5}
        | {"tokenizer": tiny_tokenizer.name_or_path, "vocab_size": 300},
        "adapters": {"init_from": tiny_start, "vocab_size": 300, "lora_rank": 2},
        "compiled": {"compile": True, "compile_backend": "aot_eager", "random_length_fraction": 0.3},
    }[kind]
    # The stream is left within its second window and read more than once.
    settings |= {"max_steps": 40, "save_steps": 20, "sample_steps": 40, "hidden_dropout": 0.1}
    whole = run("whole", **settings)
    shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_40")
    (tmp_path / "again" / "checkpoints" / "partial_40").mkdir()  # as a killed save leaves it
    again = run("again", **settings)
    for weights in ("model.safetensors", "state/model.safetensors"):  # the average, and the weights themselves
        ours, theirs = (load_file(folder / "checkpoints" / "step_40" / weights) for folder in (again, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (again / "checkpoints" / "partial_40").exists()
    assert (again / "samples/step_40/1.txt").read_bytes() == (whole / "samples/step_40/1.txt").read_bytes()


@pytest.fixture(scope="session")
def tiny_start(tmp_path_factory, tiny_tokenizer) -> str:
    """A folder with a random model of the tiny sizes and its tokenizer, to start from."""
    folder = tmp_path_factory.mktemp("start")
    sizes = {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    shape = {"vocab_size": len(tiny_tokenizer), "max_position_embeddings": TINY["length"]}
    random_model(**sizes, **shape, embedding_std=0.5, zero_init_residual=True).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_run_starts_from_the_weights_and_the_tokenizer_of_another(run, tiny_start):
    folder = (
        run(init_from=tiny_start, vocab_size=300, max_steps=1, learning_rate=0.0, weight_decay=0.0)
        / "checkpoints"
        / "step_1"
    )
    start, after = load_file(Path(tiny_start) / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(start[name], after[name]) for name in start)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 300
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(tiny_start).get_vocab()


def test_dropout_and_noise_may_differ_from_what_a_run_starts_from_but_sizes_may_not(run, tiny_start, tmp_path):
    tiny_start = {"init_from": tiny_start, "vocab_size": 300}
    config = run(**tiny_start, max_steps=1, hidden_dropout=0.3, noise_type="geometric", length=12)
    written = json.loads((config / "checkpoints" / "step_1" / "config.json").read_text())
    assert (written["hidden_dropout"], written["noise_type"], written["max_position_embeddings"]) == (
        0.3,
        "geometric",
        12,
    )
    with pytest.raises(ValueError, match=r"hidden_size=64 must be 32, as in init_from="):
        run("other", **tiny_start, hidden_size=64)
    train_tokenizer([SENTENCES * 20], 280).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"has its mask '<\|mask\|>' at id 279, and the model at 299"):
        run("other", **tiny_start, tokenizer=tmp_path / "tokenizer")


def test_adapters_alone_are_trained_and_the_checkpoint_is_their_sum_with_the_model(run, tiny_start):
    checkpoint = run(init_from=tiny_start, vocab_size=300, lora_rank=2, hidden_dropout=0.0) / "checkpoints" / "step_8"
    start, after = load_file(Path(tiny_start) / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], after[name])}
    assert changed == {name for name in start if name.rsplit(".", 2)[1] in adapters.TARGETS and name.endswith("weight")}
    adapted = PeftModel.from_pretrained(RaddForMaskedLM.from_pretrained(tiny_start), checkpoint / "adapter").eval()
    ids = torch.randint(0, 299, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        summed = RaddForMaskedLM.from_pretrained(checkpoint)(ids).logits
        torch.testing.assert_close(adapted(ids).logits, summed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", [{"gradient_checkpointing": True}, {"compile": True, "compile_backend": "eager"}])
def test_memory_and_compilation_do_not_change_what_is_trained(run, way):
    # Without dropout, whose random numbers a compiler draws in its own way.
    plain, other = (
        run(name, **settings, n_samples=0, hidden_dropout=0.0) for name, settings in (("plain", {}), ("other", way))
    )
    expected, got = (load_file(folder / "checkpoints/step_8/state/model.safetensors") for folder in (plain, other))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def test_deterministic_kernels_are_those_of_the_training_and_of_nothing_after_it(run, monkeypatch):
    in_steps, in_samples, step, sample = [], [], train.optimizer_step, train.Run.sample

    def look(*given):
        in_steps.append(torch.are_deterministic_algorithms_enabled())
        return step(*given)

    def look_at_sample(*given):
        in_samples.append(torch.are_deterministic_algorithms_enabled())
        return sample(*given)

    monkeypatch.setattr(train, "optimizer_step", look)
    monkeypatch.setattr(train.Run, "sample", look_at_sample)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # so that it is taken away afterwards
    run(deterministic=True)
    assert len(in_steps) == 8
    assert all(in_steps)
    assert in_samples == [False, False], "a running sum has no deterministic kernel on a card"
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_run_may_go_on_with_another_accumulation_from_any_step(run, tmp_path):
    settings = {"hidden_dropout": 0.0, "n_samples": 0, "save_steps": 3, "max_steps": 6}
    whole = run("whole", **settings)
    shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_6")
    again = run("again", **settings, accumulation=4)
    got, expected = (load_file(folder / "checkpoints/step_6/state/model.safetensors") for folder in (again, whole))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_steps": 0}, "log_steps=0 must be at least 1"),
        ({"keep_last": 0}, "keep_last=0 must be at least 1"),
        ({"batch_size": -1}, "batch_size=-1 must be at least 1"),
        ({"accumulation": 3}, r"batch_size=8 must be a multiple of 1 processes x accumulation=3"),
        ({"loss_type": "elbo"}, "loss_type='elbo' must be one of"),
        ({"dataset": "/no/such/text"}, "dataset='/no/such/text' could not be read"),
        ({"ema_decay": 1.5}, r"ema_decay=1\.5 must lie in"),
        ({"eval_passes": 3}, "passes=3 must be a positive multiple of 2"),
        ({"sampling_method": "dpm"}, "method='dpm' must be one of"),
        ({"sampling_steps": 0}, "sampling_steps=0 must be at least 1"),
        ({"log_with": "paper"}, "log_with='paper' must be an installed tracker of Accelerate"),
        ({"judge": "/no/such/model"}, "judge='/no/such/model' cannot be loaded"),
        ({"streaming": True, "held_out": 1}, "streaming=True needs tokenizer="),
        ({"lora_rank": -1}, "lora_rank=-1 must be at least 0"),
        ({"learning_rate": -1}, r"learning_rate=-1\.0 must be at least 0"),
        ({"adam_beta2": 1}, r"adam_beta2=1\.0 must lie in \[0, 1\)"),
        ({"lr_schedule": "steep"}, r"lr_schedule='steep' must be one of \('constant_with_warmup', "),
        ({"compile": True, "compile_backend": "none"}, r"compile_backend='none' must be one of \['aot_eager', "),
        ({"compile": False, "compile_backend": "eager"}, "compile_backend='eager' needs compile=True"),
        ({"learning_rate": math.inf}, "learning_rate=inf must be a finite number"),
        ({"validation_config": "en"}, "validation_config='en' needs validation_dataset="),
        (
            {"sampling_method": "first_hitting", "sampling_steps": 2},
            "sampling_steps=2 must be left out with sampling_method='first_hitting'",
        ),
        ({"attn_implementation": "flex_attention"}, "attn_implementation='flex_attention' does not train on a CPU"),
        ({"length": 10**6, "force": True}, r"length=1000000 must be at least 1 and at most \d+, the tokens of"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(run, settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_a_run_folder_within_the_text_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"output_dir='.*' must not lie in dataset='.*', whose files are all read"):
        run("run", dataset=tmp_path)


def test_a_held_out_text_that_is_empty_is_refused_before_training(run, tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(train, "build", lambda *_: pytest.fail("it began"))
    (tmp_path / "blank.txt").write_text("\n \n")
    rows = [{"text": " \n"}, *[{"text": SENTENCES}] * 50, {"text": ""}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = {"streaming": True, "tokenizer": tiny_tokenizer.name_or_path, "vocab_size": len(tiny_tokenizer)}
    for settings, message in (
        ({"validation_dataset": tmp_path / "blank.txt"}, r"validation_dataset='.*blank\.txt' has no text: 1 documents"),
        ({"dataset": tmp_path / "rows.jsonl", "held_out": 1}, r"dataset='.*' has no text: 1 documents, all empty"),
        ({"dataset": tmp_path / "rows.jsonl", "held_out": 1, **stream}, r"the held-out part of dataset=.* has no text"),
        ({"dataset": tmp_path / "blank.txt"}, r"dataset='.*blank\.txt' has no text"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**settings)


def test_a_validation_file_is_scored_whole(run, tiny_text, tmp_path, monkeypatch):
    (tmp_path / "held_out.txt").write_text(SENTENCES * 5)
    scored = []
    monkeypatch.setattr(train, "train", lambda run, data, *_: scored.append(data.validation.n_bytes))
    run(validation_dataset=tmp_path / "held_out.txt")
    assert scored == [5 * len(SENTENCES)]


def test_a_launchers_world_that_accelerate_does_not_share_is_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # without the rest of what a launcher sets
    monkeypatch.setattr("radd_hf.processes.Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but Accelerate runs 1 processes"):
        run()
    with pytest.raises(ValueError, match="WORLD_SIZE=2"):
        perplexity.main(["--model", "none"])


def test_an_empty_configuration_file_is_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ValueError, match="must hold fields and values"):
        train.main([f"--config={tmp_path / 'empty.yaml'}"])


def test_a_run_that_fails_says_so_to_the_shell_with_the_reason_last(tiny_config, tmp_path):
    script = [str(ROOT / "train_accelerate.py"), "--config", tiny_config(dataset="/no/such/text")]
    failed = subprocess.run(
        command(1, *script, "--output_dir", str(tmp_path / "run")),
        env=QUIET,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    *_, last = failed.stderr.splitlines()
    assert last.startswith("train_accelerate.py: error: dataset='/no/such/text' could not be read")
    assert "Traceback" not in failed.stderr


def test_a_loss_that_is_not_finite_ends_the_run(run, monkeypatch):
    monkeypatch.setattr(
        "radd_hf.modeling_radd.token_nll", lambda logits, head, hidden, *rest: hidden.sum(dim=-1) * float("nan")
    )
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        run()


def test_the_command_line_wins_over_the_file_and_unknown_fields_are_errors(run, tmp_path):
    resolved = yaml.safe_load((run(max_steps=1) / "config.yaml").read_text())
    assert (resolved["max_steps"], resolved["batch_size"]) == (1, 8)
    with pytest.raises(SystemExit) as ended:
        run(batchsize=4)
    assert ended.value.code == 2


# Bytes a file may have on a disk that is full, and the first file of a save that is larger.
@pytest.mark.parametrize("fits", [0, 1_000, 50_000, 200_000])
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_whole(run, tmp_path, monkeypatch, fits):
    save, limits = Run.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_a_full_disk(self, keep_last):
        if self.step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fits, limits[1]))
        try:
            save(self, keep_last)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Run, "save", save_on_a_full_disk)
    with pytest.raises(OSError, match=r"partial_8 could not be written \(.*\); earlier checkpoints are whole"):
        run()
    folder = tmp_path / "run" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"step_4", "partial_8"}
    RaddForMaskedLM.from_pretrained(folder / "step_4")
    monkeypatch.undo()
    assert (run() / "checkpoints" / "step_8").is_dir()
    assert not (folder / "partial_8").exists()


@pytest.mark.parametrize(
    "part",
    [
        (Path, "mkdir"),
        (run_module, "save_file"),
        (run_module, "merged"),
        (PreTrainedTokenizerBase, "save_pretrained"),
        (run_module, "write_synced"),
        (checkpoints, "seal"),
        (checkpoints, "write_synced"),
        (os, "fsync"),
        (Path, "replace"),
    ],
    ids=lambda part: part[1],
)
def test_a_part_of_a_save_that_cannot_be_written_ends_the_run_by_one_line(run, tmp_path, monkeypatch, part):
    save = Run.save

    def full(*given, **settings):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    def save_on_a_full_disk(self, keep_last):
        with monkeypatch.context() as patched:
            if self.step == 8:
                patched.setattr(*part, full)
            save(self, keep_last)

    monkeypatch.setattr(Run, "save", save_on_a_full_disk)
    with pytest.raises(OSError, match=r"partial_8 could not be written \(No space left on device \(os error 28\)\); "):
        run(n_samples=0)
    assert not (tmp_path / "run/checkpoints/step_8").exists()
    assert damage_of(tmp_path / "run/checkpoints/step_4") is None


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory, tiny_tokenizer) -> str:
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def test_samples_are_written_and_judged_as_text(run, tiny_judge, caplog):
    caplog.set_level("INFO", logger="radd_hf")
    folder = run(judge=tiny_judge, n_samples=3, sampling_method="ordered", sampling_steps=5)
    assert "no --judge" not in caplog.text
    for step in (4, 8):
        texts = [(folder / "samples" / f"step_{step}" / f"{index}.txt").read_text() for index in range(3)]
        assert len(set(texts)) == 3
        (record,) = (r for r in metrics(folder) if r["step"] == step and "sample_perplexity" in r)
        judged = judge(texts, *load_judge(tiny_judge), eos_token="<|endoftext|>")
        assert record["sample_perplexity"] == pytest.approx(judged.perplexity, rel=1e-5)
        assert 0 < record["sample_token_entropy"] <= math.log(16)


def test_without_a_judge_one_line_says_so(run, caplog):
    caplog.set_level("INFO", logger="radd_hf")
    run(max_steps=1)
    assert caplog.text.count("no --judge: samples get a token entropy, but no generative perplexity") == 1


def test_the_log_is_written_also_where_somebody_else_listens_and_is_closed_in_the_end(run):
    """As in a notebook, and under pytest, whose handlers the root logger has."""
    before = list(logging.getLogger().handlers)
    assert before
    folder = run(n_samples=0)
    assert "parameters" in (folder / "train.log").read_text()
    assert "step=8" in (folder / "train.log").read_text()
    assert logging.getLogger().handlers == before


def test_every_figure_goes_to_the_trackers(run, monkeypatch):
    class Recorder(GeneralTracker):
        name, requires_logging_directory = "recorder", False
        stored, logged, finished = None, [], False

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            type(self).stored = values

        def log(self, values, step, **kwargs):
            self.logged.append({"step": step, **values})

        def finish(self):
            type(self).finished = True

    for module in (arguments, train):
        monkeypatch.setattr(module, "trackers", lambda names: [Recorder()] if names == "recorder" else [])
    folder = run(log_with="recorder")
    figures = [{k: v for k, v in record.items() if isinstance(v, (int, float))} for record in metrics(folder)]
    assert Recorder.logged == figures
    assert Recorder.stored["batch_size"] == 8
    assert Recorder.finished


def test_on_a_terminal_there_is_a_bar_with_loss_rate_and_time_left(run, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(max_steps=3)
    shown = capsys.readouterr().err
    assert re.search(r"3/3 \[\d\d:\d\d<00:00, .*nats_per_token=\d\.\d+, tokens_per_second=[\d,]+", shown)


def test_elsewhere_there_are_plain_lines_with_the_time_left(run, caplog, capsys):
    caplog.set_level("INFO", logger="radd_hf")
    run(n_samples=0)
    assert "\r" not in capsys.readouterr().err
    assert re.search(
        r"step=4 nats_per_token=[\d.]+ lr=[\d.e-]+ tokens_per_second=[\d.e+]+ \(0:00:\d\d left\)", caplog.text
    )


@pytest.mark.parametrize(
    ("name", "parameters"), [("tiny", None), ("austen", None), ("small", 162_265_682), ("medium", 405_191_762)]
)
def test_every_configuration_is_read_and_has_the_size_it_says(name, parameters):
    model_args, data_args, args = train.parse_arguments(["--config", str(ROOT / f"configs/{name}.yaml")])
    sizes = {key: value for key, value in asdict(model_args).items() if key in train.CONFIG_FIELDS}
    with torch.device("meta"):
        vocabulary = 50258 if parameters else data_args.vocab_size
        model = RaddForMaskedLM(RaddConfig(**{k: v for k, v in sizes.items() if v is not None}, vocab_size=vocabulary))
    assert parameters in (None, model.num_parameters())
    assert train.forwards_of_a_step(args.batch_size, 8 if parameters else 1, args.accumulation, 0)


def test_only_the_last_checkpoints_are_kept(run):
    folder = run(save_steps=2, keep_last=2)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_6", "step_8"]


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
