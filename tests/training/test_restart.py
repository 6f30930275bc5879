# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run that is started again takes from its checkpoint, and what from its arguments."""

import json
import re
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator

from radd_hf.data.documents import stream_fingerprint
from radd_hf.hub.runs import all_checkpoints
from radd_hf.training import train
from radd_hf.training.checkpoints import delete_old
from radd_hf.training.restart import APPLIED, FIXED, FREE, RULES, check_settings
from radd_hf.training.run import Run, drop_later_metrics
from support.launches import TINY
from support.paths import contents
from support.texts import SENTENCES
from support.toys import random_model

SETTINGS = TINY | {"lr_schedule": "linear", "n_samples": 0}  # 8 steps, 2 of them warm-up, rate 0.01
FIELDS = {
    entry.name
    for kind in (train.ModelArguments, train.DataArguments, train.TrainingArguments)
    for entry in fields(kind)
}
# Another value for each that is fixed; those of a path are made by the tests.
OTHER = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "hidden_dropout": 0.3,
    "noise_type": "geometric",
    "embedding_std": 0.1,
    "zero_init_residual": False,
    "lora_rank": 2,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "dataset_config": "en",
    "text_column": "body",
    "streaming": True,
    "held_out": 0.1,
    "vocab_size": 400,
    "length": 8,
    "random_length_fraction": 0.1,
    "separate_documents": True,
    "special_tokens_in_text": True,
    "loss_type": "t_DCE",
    "batch_size": 4,
    "seed": 1,
}
PATHS = ("init_from", "dataset", "tokenizer")
RATE = 0.01 * 8 / 14  # of 16 steps after 8, by the linear schedule
# Another value for each that is applied, and what a run of 16 steps then has of it at step 8.
APPLICATIONS = {
    "learning_rate": (0.02, lambda run: group(run)["lr"], 2 * RATE),
    "adam_beta1": (0.8, lambda run: group(run)["betas"], (0.8, 0.999)),
    "adam_beta2": (0.98, lambda run: group(run)["betas"], (0.9, 0.98)),
    "adam_epsilon": (1e-6, lambda run: group(run)["eps"], 1e-6),
    "weight_decay": (0.1, lambda run: group(run)["weight_decay"], 0.1),
    "lr_schedule": ("constant", lambda run: group(run)["lr"], 0.01),
    "warmup_steps": (16, lambda run: group(run)["lr"], 0.005),
    "max_steps": (24, lambda run: group(run)["lr"], 0.01 * 16 / 22),
    "ema_decay": (0.5, lambda run: run.ema.decay, 0.5),
}


def last_checkpoint(folder: Path) -> Path:
    return all_checkpoints(folder)[-1]


def group(run: Run) -> dict:
    (only,) = run.optimizer.param_groups
    return only


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_text) -> Path:
    """The folder of a run of 8 steps with checkpoints at 4 and 8; tests copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    start(folder, dataset=tiny_text)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def start(folder: Path, **settings) -> None:
    flags = [part for name, value in (SETTINGS | settings).items() for part in (f"--{name}", str(value))]
    train.main([*flags, "--output_dir", str(folder)])


@pytest.fixture
def restarted(folder, tiny_text, monkeypatch):
    """Starts the run again with other settings; returns it as it is before its next step."""
    runs = []

    def stop(run, *rest):
        runs.append(run)

    def restart(**settings) -> Run:
        with monkeypatch.context() as patched:
            patched.setattr(train, "train", stop)
            patched.setattr(Run, "evaluate", lambda *given, **settings: {})
            patched.setattr(train, "summary", lambda *given: "")  # of no figures
            start(folder, **{"dataset": tiny_text, "max_steps": 16} | settings)
        return runs[-1]

    return restart


def test_every_argument_has_a_rule_and_every_rule_a_test():
    assert set(RULES) == FIELDS
    assert {name for name, rule in RULES.items() if rule == FIXED} == {*OTHER, *PATHS}
    assert {name for name, rule in RULES.items() if rule == APPLIED} == {*APPLICATIONS, "max_grad_norm"}


@pytest.mark.parametrize("name", OTHER)
def test_a_fixed_argument_that_changes_is_refused_with_both_values(folder, tiny_text, name):
    before = json.loads((last_checkpoint(folder) / "state/progress.json").read_text())["settings"][name]
    with pytest.raises(
        ValueError, match=rf"holds another run: {name}={OTHER[name]!r} must be {before!r}, as in step_8"
    ):
        start(folder, **{"dataset": tiny_text, name: OTHER[name]})


def test_another_text_tokenizer_or_model_to_start_from_is_refused(folder, tiny_text, tiny_tokenizer, tmp_path):
    (tmp_path / "other.txt").write_text(SENTENCES * 300)
    with pytest.raises(ValueError, match=r"the fingerprint of dataset='\w{12}' must be '\w{12}'"):
        start(folder, dataset=tmp_path / "other.txt")
    with pytest.raises(ValueError, match=r"tokenizer='.*' must be None"):
        start(folder, dataset=tiny_text, tokenizer=tiny_tokenizer.name_or_path)
    sizes = {name: SETTINGS[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    random_model(**sizes, vocab_size=320, max_position_embeddings=16).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"init_from='.*' must be None"):
        start(folder, dataset=tiny_text, init_from=tmp_path / "model")


def test_the_same_text_may_have_moved(folder, tiny_text, tmp_path):
    start(folder, dataset=shutil.copy(tiny_text, tmp_path / "moved.txt"), max_steps=9)
    assert last_checkpoint(folder).name == "step_9"


def test_what_init_from_says_may_as_well_be_said(tmp_path, tiny_text, tiny_tokenizer):
    sizes = {name: SETTINGS[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = random_model(
        **sizes, vocab_size=300, max_position_embeddings=16, embedding_std=0.5, zero_init_residual=True
    )
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    given = {name: value for name, value in SETTINGS.items() if name not in sizes}
    settings = given | {"dataset": tiny_text, "init_from": tmp_path / "model", "vocab_size": 300, "max_steps": 1}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    train.main([*flags, "--output_dir", str(tmp_path / "run")])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["hidden_size"] == 32
    start(tmp_path / "run", **settings | {"max_steps": 2})
    assert last_checkpoint(tmp_path / "run").name == "step_2"


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_applied_argument_holds_from_the_next_step_on(restarted, name):
    value, observed, expected = APPLICATIONS[name]
    assert observed(restarted()) != pytest.approx(expected)
    run = restarted(**{name: value})
    assert run.step == 8
    assert observed(run) == pytest.approx(expected)


def test_the_norm_to_which_gradients_are_clipped_is_applied(folder, tiny_text, monkeypatch):
    clip, norms = Accelerator.clip_grad_norm_, []

    def recorded(self, parameters, max_norm, *rest):
        norms.append(max_norm)
        return clip(self, parameters, max_norm, *rest)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", recorded)
    start(folder, dataset=tiny_text, max_steps=9, max_grad_norm=0.5)
    assert norms == [0.5]


def test_a_run_may_go_on_in_fp16_whose_scaler_the_checkpoint_has_not(restarted, monkeypatch):
    scaler, make = torch.amp.GradScaler("cpu", init_scale=8.0), train.accelerator_for

    def with_scaler(args) -> Accelerator:
        accelerator = make(args)
        accelerator.scaler = scaler  # as Accelerate does on a GPU
        return accelerator

    monkeypatch.setattr(train, "accelerator_for", with_scaler)
    assert restarted().accelerator.scaler is scaler


def test_the_scale_of_fp16_goes_on(folder, tiny_text, monkeypatch):
    make, scalers = train.accelerator_for, []

    def with_scaler(args) -> Accelerator:
        accelerator = make(args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=6)
        scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(train, "accelerator_for", with_scaler)
    start(folder, dataset=tiny_text, max_steps=16, save_steps=100)
    assert (scalers[0].get_scale(), scalers[0].state_dict()["_growth_tracker"]) == (2.0**11, 2)
    start(folder, dataset=tiny_text, max_steps=17)
    assert (scalers[1].get_scale(), scalers[1].state_dict()["_growth_tracker"]) == (2.0**11, 3)


def test_the_rest_may_change_freely(finished):
    saved = json.loads((last_checkpoint(finished) / "state/progress.json").read_text())["settings"]
    free = {name: "another" for name, rule in RULES.items() if rule == FREE}
    assert saved.keys() == RULES.keys() - {"output_dir"}
    check_settings(last_checkpoint(finished), saved | free)


def test_the_folder_tells_how_the_run_goes_on(folder, restarted):
    restarted(learning_rate=0.02)
    assert yaml.safe_load((folder / "config.yaml").read_text())["learning_rate"] == 0.02
    (line,) = re.findall("from step 8 on: (.*)", (folder / "train.log").read_text())
    assert {"learning_rate=0.02 (was 0.01)", "max_steps=16 (was 8)"} <= set(line.split(", "))


def test_fewer_steps_than_were_done_are_refused(restarted):
    with pytest.raises(ValueError, match=r"max_steps=7 must be at least 8, the step of .*step_8\."):
        restarted(max_steps=7)


def test_what_else_lies_among_the_checkpoints_is_left_alone_and_ends_no_run(tmp_path, tiny_text):
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "step_10_mine").mkdir(parents=True)
    (checkpoints / "step_x").mkdir()
    strays = ("step_10_mine/notes.txt", "step_x/a", "step_99", "step_4", "partial_4", "step_")
    for stray in strays:
        (checkpoints / stray).write_text(stray)
    assert all_checkpoints(tmp_path / "run") == []
    start(tmp_path / "run", dataset=tiny_text, keep_last=1)
    assert [path.name for path in all_checkpoints(tmp_path / "run")] == ["step_8"]
    for stray in strays:
        moved = checkpoints / (f"{stray}_before" if stray in ("step_4", "partial_4") else stray)
        assert moved.read_text() == stray
    start(tmp_path / "run", dataset=tiny_text, keep_last=1, max_steps=9)
    assert [path.name for path in all_checkpoints(tmp_path / "run")] == ["step_9"]


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_run(tmp_path, caplog, monkeypatch):
    for step in (1, 2, 3):
        (tmp_path / "checkpoints" / f"step_{step}").mkdir(parents=True)

    def refuse(path, *rest):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    delete_old(tmp_path, keep_last=2)
    assert "step_1 could not be deleted" in caplog.text
    monkeypatch.undo()
    delete_old(tmp_path, keep_last=2)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step_2", "step_3"]


def test_arguments_are_saved_as_they_take_effect(finished):
    saved = json.loads((last_checkpoint(finished) / "state/progress.json").read_text())["settings"]
    model_args, data_args, args = train.parse_arguments(["--config", str(finished / "config.yaml")])
    assert asdict(model_args) | asdict(data_args) | asdict(args) == saved | {"output_dir": args.output_dir}
    assert (saved["accumulation"], saved["max_grad_norm"], saved["mixed_precision"]) == (1, 1.0, "no")


def test_a_run_that_is_refused_leaves_its_folder_as_it_was(folder, tiny_text):
    before = contents(folder)
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of 1 processes x accumulation=3"):
        start(folder, dataset=tiny_text, accumulation=3, max_steps=16)
    after = contents(folder)
    assert {name: data for name, data in after.items() if name != "train.log"} == {
        name: data for name, data in before.items() if name != "train.log"
    }


def test_a_run_that_moved_is_not_begun_anew_at_its_old_place(folder, tmp_path):
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=rf"pass --output_dir {moved} to resume there"):
        train.main(["--config", str(moved / "config.yaml")])
    train.main(["--config", str(moved / "config.yaml"), "--output_dir", str(moved), "--max_steps", "9"])
    assert last_checkpoint(moved).name == "step_9"


def test_lines_of_the_metrics_that_are_whole_are_kept(folder):
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    damaged = [lines[1][:9], '["step"]', '{"step": "4"}', "4", "\udcff" + lines[1].strip()]
    text = "".join([lines[0], *(line + "\n" for line in damaged), *lines[2:]])
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    drop_later_metrics(file, 8)
    kept = [lines[0], *(line for line in lines[2:] if "final_" not in line)]
    assert file.read_text().splitlines(keepends=True) == kept


def test_a_stream_is_known_by_its_text_and_not_by_its_path(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    shutil.copytree(tmp_path, tmp_path / "moved", dirs_exist_ok=True, ignore=shutil.ignore_patterns("moved"))
    monkeypatch.chdir(tmp_path)
    one = stream_fingerprint(f"{tmp_path}/*.jsonl", None)
    assert one == stream_fingerprint("./*.jsonl", None) == stream_fingerprint("moved", None)
    (tmp_path / "moved/b.jsonl").write_text(json.dumps({"text": "c.jsonl"}))
    assert one != stream_fingerprint("moved", None)
    (tmp_path / "b.jsonl").rename(tmp_path / "A.jsonl")
    assert one != stream_fingerprint("./*.jsonl", None)
