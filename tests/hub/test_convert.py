# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversion keeps every bit, writes a complete folder or none, runs no foreign code, and can be undone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from safetensors.torch import load, load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

import radd_hf.hub.convert
from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.hub.convert import convert, main, to_original
from radd_hf.hub.loading import load_model
from support.launches import WITHOUT_RADD_HF
from support.paths import GOLDEN, SHIPPED, contents
from support.toys import random_model

HUB, RUN = GOLDEN / "hub", GOLDEN / "run"
MODEL_FILES = {*SHIPPED, "README.md", "config.json", "generation_config.json", "model.safetensors"}


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, types included."""
    if {name: tensor.dtype for name, tensor in one.items()} != {name: tensor.dtype for name, tensor in other.items()}:
        return False
    return all(torch.equal(one[name], other[name]) for name in one)


def same_weights(one: RaddForMaskedLM, other: RaddForMaskedLM) -> bool:
    return same_tensors(one.state_dict(), other.state_dict())


def same_files(one: Path, other: Path) -> bool:
    return same_tensors(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def checkpoint() -> dict:
    return torch.load(RUN / "checkpoints-meta" / "checkpoint.pth", weights_only=True)


@pytest.fixture
def words(tmp_path) -> Path:
    """A tokenizer without a mask token, of as many words as the golden model has tokens."""
    vocabulary = {"<|endoftext|>": 0} | {f"word{number}": number for number in range(1, 96)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    fast.save_pretrained(tmp_path / "words")
    return tmp_path / "words"


# Released and trained checkpoints to ours


def test_a_converted_release_is_the_directly_loaded_one_bit_for_bit(tmp_path, golden_model):
    converted = RaddForMaskedLM.from_pretrained(convert(HUB, tmp_path / "ours"))
    assert same_weights(converted, golden_model)
    ignored = dict.fromkeys(("auto_map", "custom_pipelines", "architectures", "dtype", "_name_or_path"))
    assert converted.config.to_dict() | ignored == golden_model.config.to_dict() | ignored
    names = set(load_file(tmp_path / "ours" / "model.safetensors"))
    assert names == set(golden_model.state_dict())


def split_in_two(folder: Path, state: dict, kind: str) -> None:
    """Writes the weights to two files, which an index names, as their libraries do for large models."""
    names, files = sorted(state), (f"part-1.{kind}", f"part-2.{kind}")
    place = {name: files[number % 2] for number, name in enumerate(names)}
    save = save_file if kind == "safetensors" else torch.save
    for file in files:
        save({name: state[name] for name in names if place[name] == file}, folder / file)
    index = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}[kind]
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": place}))


@pytest.mark.parametrize("layout", ["shards", "bin", "shards of bin"])
def test_the_authors_weights_may_lie_in_several_files_or_in_one_of_torch(tmp_path, hub, layout):
    state = load((hub / "model.safetensors").read_bytes())
    (hub / "model.safetensors").unlink()
    if layout == "bin":
        torch.save(state, hub / "pytorch_model.bin")
    else:
        split_in_two(hub, state, "bin" if "bin" in layout else "safetensors")
    assert same_files(convert(hub, tmp_path / "ours"), convert(HUB, tmp_path / "expected"))
    assert same_weights(load_model(str(hub)), load_model(str(HUB)))


def test_a_part_that_is_absent_and_a_damaged_index_are_named(tmp_path, hub):
    split_in_two(hub, load((hub / "model.safetensors").read_bytes()), "safetensors")
    (hub / "model.safetensors").unlink()
    (hub / "part-2.safetensors").unlink()
    refuse(hub, tmp_path / "targets", r"part-2\.safetensors is missing; model\.safetensors\.index\.json lists it")
    (hub / "model.safetensors.index.json").write_text("{}")
    refuse(hub, tmp_path / "more-targets", r"model\.safetensors\.index\.json has no 'weight_map'")


def test_a_converted_run_gives_the_logits_of_its_moving_average(tmp_path):
    expected = load_file(GOLDEN / "run_forward_ema.safetensors")
    model = RaddForMaskedLM.from_pretrained(convert(RUN, tmp_path / "ours")).eval()
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    assert relative_error(logits[..., :-1], expected["logits"][..., :-1]) < 1e-5


def test_without_ema_a_run_gives_its_raw_weights(tmp_path, checkpoint):
    raw = RaddForMaskedLM.from_pretrained(convert(RUN, tmp_path / "raw", use_ema=False))
    averaged = RaddForMaskedLM.from_pretrained(convert(RUN, tmp_path / "averaged"))
    assert torch.equal(raw.lm_head.weight, checkpoint["model"]["output_layer.linear.weight"])
    assert torch.equal(averaged.lm_head.weight, checkpoint["ema"]["shadow_params"][-2])
    assert not torch.equal(raw.lm_head.weight, averaged.lm_head.weight)


def test_every_snapshot_of_a_run_can_be_converted_by_its_file(tmp_path, run):
    (run / "checkpoints").mkdir()
    snapshot = shutil.copy(run / "checkpoints-meta" / "checkpoint.pth", run / "checkpoints" / "checkpoint_123.pth")
    convert(snapshot, tmp_path / "snapshot")
    convert(run, tmp_path / "latest")
    assert same_files(tmp_path / "snapshot", tmp_path / "latest")
    assert "`a-run/checkpoints/checkpoint_123.pth`" in (tmp_path / "snapshot" / "README.md").read_text()


def test_one_of_our_folders_converts_to_itself(tmp_path):
    model = random_model(vocab_size=11, mask_token_id=3, max_position_embeddings=8, noise_type="geometric")
    model.generation_config.steps = 4
    model.save_pretrained(tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "second")
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert second.pop("README.md")
    assert first == second


def test_a_dtype_rounds_the_weights_and_none_keeps_them(tmp_path, golden_model):
    half = RaddForMaskedLM.from_pretrained(convert(HUB, tmp_path / "half", dtype="bfloat16"))
    assert half.dtype == torch.bfloat16
    assert same_weights(half, golden_model.bfloat16())
    assert RaddForMaskedLM.from_pretrained(convert(tmp_path / "half", tmp_path / "again")).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype='float64' must be one of"):
        convert(HUB, tmp_path / "double", dtype="float64")


# The folder


def test_a_converted_folder_is_complete(tmp_path, words):
    folder = convert(HUB, tmp_path / "ours", tokenizer=words)
    files = {path.name for path in folder.iterdir()}
    assert files == {*MODEL_FILES, "tokenizer.json", "tokenizer_config.json"}
    assert AutoTokenizer.from_pretrained(folder).mask_token_id == RaddConfig.from_pretrained(folder).mask_token_id == 96
    assert {path.name for path in convert(HUB, tmp_path / "bare").iterdir()} == MODEL_FILES


def test_the_mask_that_a_tokenizer_is_given_takes_the_space_before_it(tmp_path, words):
    tokenizer = AutoTokenizer.from_pretrained(convert(HUB, tmp_path / "ours", tokenizer=words))
    assert AutoTokenizer.from_pretrained(words).mask_token is None
    assert tokenizer.added_tokens_decoder[96].lstrip


def test_converting_twice_gives_the_same_bytes_and_none_names_the_machine(tmp_path, words):
    for source in (HUB, RUN):
        once = contents(convert(source, tmp_path / f"{source.name}-once", tokenizer=words))
        assert once == contents(convert(source, tmp_path / f"{source.name}-twice", tokenizer=words))
        for name, content in once.items():
            for place in (tmp_path, Path.cwd(), Path.home(), GOLDEN):
                assert str(place).encode() + b"/" not in content, name


def test_the_card_tells_the_hub_what_this_is_and_the_reader_where_it_is_from(tmp_path):
    card = (convert(RUN, tmp_path / "ours") / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in front, "the weights' license is their source's, which is not known here"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "fill-mask"
    assert {"radd", "masked-diffusion"} <= set(front["tags"])
    for words_of_it in (
        "https://arxiv.org/abs/2406.03736",
        "| Source | `run`, a training run of the authors' code |",
        "| Weights | exponential moving average |",
        "| Training step | 123 |",
        "license of their source",
    ):
        assert words_of_it in card
    assert "| Weights | raw |" in (convert(RUN, tmp_path / "raw", use_ema=False) / "README.md").read_text()
    assert "Training step" not in (convert(HUB, tmp_path / "released") / "README.md").read_text()


def test_a_repository_is_named_with_its_revision(tmp_path, monkeypatch):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--radd"
    shutil.copytree(HUB, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    card = (convert("someone/radd", tmp_path / "ours") / "README.md").read_text()
    assert "[someone/radd](https://huggingface.co/someone/radd)" in card
    assert f"| Revision | {revision} |" in card
    assert same_files(tmp_path / "ours", convert(HUB, tmp_path / "local"))


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_usage_on_the_card_runs_for_a_stranger(tmp_path, words, with_tokenizer):
    folder = convert(RUN, tmp_path / "ours", tokenizer=words if with_tokenizer else None)
    (usage,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert '"..."' in usage
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT_RADD_HF + usage.replace('"..."', repr(str(folder)))]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert finished.returncode == 0, finished.stderr
    assert ("word" if with_tokenizer else "tensor([[") in finished.stdout
    assert "mask" not in finished.stdout


def test_automodel_loads_a_converted_folder(tmp_path, golden_model):
    model = AutoModel.from_pretrained(convert(HUB, tmp_path / "ours"), trust_remote_code=True).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, golden_model(ids).logits)


def test_a_tokenizer_whose_mask_is_not_the_models_is_refused(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="has ids up to 299, and the model has 97 tokens: it belongs to another model"):
        convert(HUB, tmp_path / "ours", tokenizer=tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer='nowhere/none' cannot be loaded"):
        convert(HUB, tmp_path / "ours", tokenizer="nowhere/none")
    assert not (tmp_path / "ours").exists()


def test_the_folder_is_uploaded_where_one_asks(tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))

    monkeypatch.setattr(radd_hf.hub.convert, "HfApi", Hub)
    convert(HUB, tmp_path / "ours", push_to_hub="someone/radd")
    assert calls == [("someone/radd", True), ("someone/radd", MODEL_FILES)]
    assert 'name = "someone/radd"\n' in (tmp_path / "ours" / "README.md").read_text()


# What is refused, and that nothing is left behind


def refuse(source: Path | str, folder: Path, message: str, **options) -> None:
    """Both directions refuse the source, and the folder of the target stays empty."""
    folder.mkdir()
    for function in (convert, to_original):
        with pytest.raises(ValueError, match=message):
            function(source, folder / "target", **options)
        assert list(folder.iterdir()) == []


class Payload:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("place", ["model", "ema", "optimizer", "step"])
def test_a_checkpoint_that_would_run_code_is_refused_and_its_code_not_run(tmp_path, run, checkpoint, place):
    executed = tmp_path / "executed"
    torch.save({**checkpoint, place: Payload(executed)}, run / "checkpoints-meta" / "checkpoint.pth")
    refuse(run, tmp_path / "targets", r"checkpoint.pth is refused.*pathlib.*only tensors and plain containers")
    assert not executed.exists()
    torch.load(run / "checkpoints-meta" / "checkpoint.pth", weights_only=False)
    assert executed.exists()  # the payload works: it was refused, not broken


def test_weights_of_torch_that_would_run_code_are_refused_and_their_code_not_run(tmp_path, hub):
    executed = tmp_path / "executed"
    (hub / "model.safetensors").unlink()
    torch.save({"vocab_embed.embedding": Payload(executed)}, hub / "pytorch_model.bin")
    refuse(hub, tmp_path / "targets", r"pytorch_model\.bin is refused: .*opening it would run code")
    assert not executed.exists()


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, run, keep):
    file = run / "checkpoints-meta" / "checkpoint.pth"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    refuse(run, tmp_path / "targets", "checkpoint.pth is not a whole file of torch.save")


def without(name):
    return lambda saved: saved["model"].pop(name)


def shorter(name):
    return lambda saved: saved["model"].update({name: saved["model"][name][:-1]})


def swap_first_averages(saved):
    averages = saved["ema"]["shadow_params"]
    averages[0], averages[3] = averages[3], averages[0]


def sort_names(saved):
    saved["model"] = dict(sorted(saved["model"].items()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: saved.clear(), "under the key 'model'; found the keys none"),
        (lambda saved: saved.update(model=[1]), "must hold tensors by name under the key 'model'"),
        (lambda saved: saved["model"].update({0: torch.ones(1)}), "must hold tensors by name under the key 'model'"),
        (lambda saved: saved["model"].update(step=3), "must hold tensors by name under the key 'model'"),
        (without("blocks.1.norm1.bias"), r"missing blocks\.1\.norm1\.bias"),
        (without("vocab_embed.embedding"), r"missing vocab_embed\.embedding"),
        (lambda saved: saved["model"].update(foreign=torch.ones(2)), "unexpected foreign"),
        (
            shorter("blocks.0.mlp.0.bias"),
            r"blocks\.0\.mlp\.0\.bias has the shape \(255,\), and the configuration \(256,\)",
        ),
        (lambda saved: saved.pop("ema"), "no moving average .* to take the raw weights"),
        (lambda saved: saved["ema"]["shadow_params"].pop(), "34 moving averages and 35 parameters"),
        (swap_first_averages, r"the moving average of vocab_embed\.embedding is \(192, 64\), not \(97, 64\)"),
        (sort_names, "not in the network's order"),
    ],
)
def test_a_checkpoint_that_is_not_one_of_this_network_is_refused(tmp_path, run, checkpoint, damage, message):
    damage(checkpoint)
    torch.save(checkpoint, run / "checkpoints-meta" / "checkpoint.pth")
    refuse(run, tmp_path / "targets", message)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        (
            "model",
            "hidden_size",
            32,
            r"vocab_embed\.embedding has the shape \(97, 64\), and the configuration \(97, 32\)",
        ),
        ("model", "n_blocks", 2, r"unexpected blocks\.2\.attn_out\.weight, .* and 7 more"),
        ("model", "n_blocks", 4, r"missing blocks\.3\.attn_out\.weight, .* and 7 more"),
        ("model", "n_heads", 8, r"is for heads of width 16\. By its n_heads=8 the configuration has heads of width 8,"),
        ("model", "n_heads", "4", "is not that of a RADD model"),
        ("model", "type", "ddit", "model.type='ddit'"),
        ("model", "n_heads", None, "lacks 'n_heads'"),
        ("noise", "type", "cosine", "noise_type='cosine' must be one of"),
        ("tokens", None, 95, r"vocab_embed\.embedding has the shape \(97, 64\), and the configuration \(96, 64\)"),
    ],
)
@pytest.mark.parametrize("layout", ["run", "hub"])
def test_a_configuration_of_another_network_is_refused(tmp_path, request, layout, section, name, value, message):
    source = request.getfixturevalue(layout)
    file = source / (".hydra/config.yaml" if layout == "run" else "config.json")
    settings = yaml.safe_load(file.read_text())
    if name is None:
        settings[section] = value
    elif value is None:
        del settings[section][name]
    else:
        settings[section][name] = value
    file.write_text(json.dumps(settings))  # JSON is YAML
    refuse(source, tmp_path / "targets", message)


def test_a_damaged_run_configuration_is_refused(tmp_path, run):
    (run / ".hydra" / "config.yaml").write_text("model: [")
    refuse(run, tmp_path / "targets", "cannot read .hydra/config.yaml of its run")
    (run / ".hydra" / "config.yaml").write_text("- model")
    refuse(run, tmp_path / "more-targets", "it must have 'model_type'")
    (run / ".hydra" / "config.yaml").unlink()
    refuse(run, tmp_path / "most-targets", "cannot read .hydra/config.yaml of its run")


def test_a_damaged_release_is_refused(tmp_path, hub):
    weights = hub / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load(whole)  # not mapped: the file is about to change
    weights.write_bytes(whole[: len(whole) // 2])
    refuse(hub, tmp_path / "truncated", "its weights are missing or damaged")
    weights.unlink()
    refuse(hub, tmp_path / "absent", "has no weights; the folder must hold one of model.safetensors")
    del tensors["output_layer.linear.bias"]
    save_file(tensors, weights)
    refuse(hub, tmp_path / "incomplete", r"missing output_layer\.linear\.bias")


def test_a_damaged_folder_of_ours_is_refused(tmp_path, hub):
    ours = convert(hub, tmp_path / "ours")
    weights = ours / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load(whole)  # not mapped: the file is about to change
    weights.write_bytes(whole[: len(whole) // 2])
    refuse(ours, tmp_path / "truncated", "cannot be loaded")
    save_file(tensors | {"model.norm.bias": torch.ones(3)}, weights, metadata={"format": "pt"})
    refuse(
        ours, tmp_path / "shape", r"the weight model\.norm\.bias has the shape \(3,\), and the configuration \(64,\)"
    )
    del tensors["model.norm.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    refuse(ours, tmp_path / "incomplete", r"missing model\.norm\.bias")
    (ours / "config.json").write_text('{"model_type": "bert"}')
    refuse(ours, tmp_path / "foreign", "is a model of type 'bert', not 'radd'")


def test_a_source_that_is_nothing_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path / "targets", "is a folder without a config.json, so it holds no model")
    (tmp_path / "empty" / "config.json").write_text("{")
    refuse(tmp_path / "empty", tmp_path / "broken-targets", "config.json cannot be read")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refuse(tmp_path / "empty", tmp_path / "strange-targets", "is not that of a RADD model: it must have 'model_type'")
    (tmp_path / "empty" / "config.json").write_text("[]")
    refuse(tmp_path / "empty", tmp_path / "foreign-targets", "config.json must hold an object")
    refuse(
        "nobody/nothing",
        tmp_path / "more-targets",
        "Cannot find source=.*: no such folder, and no reachable Hub|cannot be read",
    )


def test_raw_weights_of_what_has_only_one_set_are_refused(tmp_path):
    refuse(HUB, tmp_path / "targets", "use_ema=False needs a training run", use_ema=False)


@pytest.mark.parametrize("function", [convert, to_original])
def test_only_a_new_or_empty_target_is_written(tmp_path, function):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    for target in (tmp_path / "used", tmp_path / "used" / "mine.txt"):
        with pytest.raises(ValueError, match="exists and is not an empty folder"):
            function(HUB, target)
    assert contents(tmp_path / "used") == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert same_files(function(HUB, tmp_path / "empty"), function(HUB, tmp_path / "deep" / "er"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "used"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(RaddForMaskedLM, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(HUB, tmp_path / "ours")
    assert list(tmp_path.iterdir()) == []


# Ours to the authors' layout


def test_to_original_gives_the_authors_tensors_back_bit_for_bit(tmp_path, golden_model):
    convert(HUB, tmp_path / "ours")
    to_original(tmp_path / "ours", tmp_path / "theirs")
    to_original(HUB, tmp_path / "at-once")
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {"config.json", "model.safetensors"}
    assert same_files(tmp_path / "theirs", HUB)
    assert contents(tmp_path / "theirs") == contents(tmp_path / "at-once")
    assert same_weights(RaddForMaskedLM.from_pretrained(tmp_path / "theirs"), golden_model)


def test_the_nested_configuration_says_what_the_authors_code_reads(tmp_path):
    nested = json.loads((to_original(HUB, tmp_path / "theirs") / "config.json").read_text())
    published = json.loads((HUB / "config.json").read_text())
    assert nested["tokens"] == published["tokens"]
    assert nested["noise"] == published["noise"]
    unread = {"name", "cond_dim"}
    assert nested["model"] == {name: value for name, value in published["model"].items() if name not in unread}


def test_a_run_goes_to_the_released_layout_with_its_moving_average(tmp_path, checkpoint):
    state = load_file(to_original(RUN, tmp_path / "theirs") / "model.safetensors")
    assert list(checkpoint["model"]) != list(state)  # safetensors sorts them
    names = [name for name in checkpoint["model"] if name != "rotary_emb.inv_freq"]
    for name, average in zip(names, checkpoint["ema"]["shadow_params"], strict=True):
        assert torch.equal(state[name], average), name
    raw = load_file(to_original(RUN, tmp_path / "raw", use_ema=False) / "model.safetensors")
    assert same_tensors(raw, checkpoint["model"])


def test_ours_survives_the_way_there_and_back(tmp_path):
    settings = {"noise_type": "geometric", "sigma_max": 5, "hidden_dropout": 0.1}
    model = random_model(vocab_size=11, max_position_embeddings=8, **settings).bfloat16()
    model.save_pretrained(tmp_path / "ours")
    to_original(tmp_path / "ours", tmp_path / "theirs")
    back = RaddForMaskedLM.from_pretrained(convert(tmp_path / "theirs", tmp_path / "back"))
    assert same_weights(back, model)
    assert contents(tmp_path / "back")["config.json"] == contents(tmp_path / "ours")["config.json"]
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_token_id": 3}, "mask_token_id=3 cannot be written in the authors' layout: in their code it is 10"),
        ({"intermediate_size": 24}, "intermediate_size=24 cannot"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06 cannot"),
        ({"noise_eps": 1e-2}, "noise_eps=0.01 cannot"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "rope_parameters=.*500.* cannot"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
            "rope_parameters=.* cannot",
        ),
    ],
)
def test_what_the_authors_network_cannot_express_is_refused_by_name(tmp_path, settings, message):
    random_model(**{"vocab_size": 11, "max_position_embeddings": 8, **settings}).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        to_original(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_settings_that_the_authors_noise_does_not_read_may_have_any_value(tmp_path):
    model = random_model(vocab_size=11, max_position_embeddings=8, noise_type="geometric", noise_eps=0.5)
    model.save_pretrained(tmp_path / "ours")
    assert to_original(tmp_path / "ours", tmp_path / "theirs").is_dir()


# The command line


def test_the_command_line_converts_and_says_that_no_tokenizer_is_there(tmp_path, capsys, words):
    main([str(RUN), str(tmp_path / "raw"), "--no-ema", "--dtype", "bfloat16"])
    assert "The folder has no tokenizer" in capsys.readouterr().out
    convert(RUN, tmp_path / "same", use_ema=False, dtype="bfloat16")
    assert contents(tmp_path / "raw") == contents(tmp_path / "same")
    main([str(HUB), str(tmp_path / "ours"), "--tokenizer", str(words)])
    assert "okenizer" not in capsys.readouterr().out
    main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to-original"])
    assert "okenizer" not in capsys.readouterr().out
    assert same_files(tmp_path / "theirs", HUB)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--to-original", "--tokenizer", "gpt2"], "the authors' layout (--to-original) has no place for it"),
    ],
)
def test_a_command_line_at_fault_ends_with_the_reason(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nothing"), str(tmp_path / "target"), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"Cannot find source=.*: no such folder, and no reachable Hub"):
        main([str(tmp_path / "nothing"), str(tmp_path / "target")])
    assert list(tmp_path.iterdir()) == []
