# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What is loaded is whole: weights from the file alone, of a RADD model, with a tokenizer whose ids are the model's.

Everything else is refused before any work is done, by a message that says what it is and what to do.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    logging,
)

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.app import cli
from radd_hf.evaluation import perplexity, samples
from radd_hf.hub.convert import convert
from radd_hf.hub.loading import check_tokenizer, load, load_model
from radd_hf.text_radd import encode_blanks
from radd_hf.training import train
from support.paths import GOLDEN
from support.tokenizers import letters
from support.toys import random_model

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = random_model(vocab_size=300, max_position_embeddings=16, eos_token_id=tiny_tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def changed(tmp_path, whole):
    """Copies a checkpoint with other weights or other settings; returns the folder's name."""

    def change(rename=lambda name: name, source=whole, weights=None, drop=(), **settings) -> str:
        folder = shutil.copytree(source, tmp_path / "changed", dirs_exist_ok=True)
        state = load_file(source / "model.safetensors") | (weights or {})
        kept = {rename(name): tensor for name, tensor in state.items() if name not in drop}
        (folder / "model.safetensors").unlink()  # the copy of a mapped file
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))
        return str(folder)

    return change


def refuse(name, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(str(name))


# ---------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("module.", r"Names hold 'module\.', which torch's DataParallel or DistributedDataParallel adds\. Save"),
        ("_orig_mod.", r"Names hold '_orig_mod\.', which torch\.compile adds"),
        ("module._orig_mod.", r"Names hold 'module\.'"),
        (
            "base_model.model.",
            r"Every name begins with 'base_model\.model\.'\. Save the state dict of the network inside",
        ),
        ("net.", r"Every name begins with 'net\.'"),
    ],
)
def test_a_prefix_of_all_names_is_named(changed, prefix, message):
    refuse(changed(lambda name: prefix + name), rf"missing lm_head\.bias, .*unexpected .*{message}")


def test_a_wrapper_inside_names_is_named(changed):
    refuse(changed(lambda name: name.replace(".mlp.", "._orig_mod.mlp.")), "which torch.compile adds")
    refuse(
        changed(lambda name: name.replace("up_proj.weight", "up_proj.base_layer.weight")),
        "which an adapter of PEFT adds, and merge_and_unload removes",
    )


def test_the_authors_names_behind_a_prefix_are_refused(changed):
    refuse(changed(lambda name: f"module.{name}", source=GOLDEN / "hub"), r"Names hold 'module\.'")


def test_a_weight_that_is_missing_or_too_many_or_of_another_shape_is_named(changed):
    refuse(changed(drop=[UP]), rf"missing {UP}")
    refuse(changed(weights={"model.layers.1.gate": torch.ones(2)}), r"unexpected model\.layers\.1\.gate")
    refuse(
        changed(num_hidden_layers=4),
        r"missing model\.layers\.2\.input_layernorm\.bias, .* and 17 more",
    )
    refuse(changed(num_hidden_layers=1), r"unexpected model\.layers\.1\.input_layernorm\.bias, .* 7 more")
    refuse(
        changed(weights={UP: torch.ones(64, 5)}),
        rf"weight {UP} has the shape \(64, 5\), and the configuration \(64, 16\)",
    )


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_named(changed, tmp_path, number):
    weight = torch.zeros(64, 16)
    weight[5, 7] = number
    refuse(changed(weights={UP: weight}), rf"the weight {UP} holds numbers that are not finite as torch\.float32")
    with pytest.raises(ValueError, match=r"up_proj\.weight holds numbers that are not finite"):
        convert(changed(weights={UP: weight}), tmp_path / "target")


def test_a_weight_that_overflows_in_the_type_that_is_asked_for_is_named(changed):
    large = changed(weights={UP: torch.full((64, 16), 1e5)})
    assert load_model(large).dtype == torch.float32
    with pytest.raises(ValueError, match=rf"the weight {UP} holds numbers that are not finite as torch\.float16"):
        load_model(large, dtype=torch.float16)


def test_another_number_of_heads_is_refused_where_the_file_tells_it(changed):
    nested = json.loads((GOLDEN / "hub" / "config.json").read_text())
    wrong = changed(source=GOLDEN / "hub", model=nested["model"] | {"n_heads": 2})
    message = (
        r"rotary_emb\.inv_freq is for heads of width 16\. By its n_heads=2 the configuration has heads of width 32,"
    )
    refuse(wrong, message)
    state = load_file(Path(wrong) / "model.safetensors")
    place = {name: f"part-{int('inv_freq' in name)}.bin" for name in state}  # not in the first of two files
    for part in set(place.values()):
        torch.save({name: state[name].clone() for name in state if place[name] == part}, Path(wrong) / part)
    (Path(wrong) / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    (Path(wrong) / "model.safetensors").unlink()
    refuse(wrong, message)


def test_a_refusal_is_one_message_and_nothing_is_logged(changed, capfd):
    before = logging.get_verbosity()
    refuse(changed(drop=[UP]), UP)
    assert logging.get_verbosity() == before
    assert "MISSING" not in "".join(capfd.readouterr())


# ---------------------------------------------------------------------------------------------------------
# Other models, and what is not a model

SEDD = {"tokens": 50257, "graph": {"type": "absorb"}, "noise": {"type": "loglinear"}, "model": {"type": "ddit"}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "mdlm"},
            r"a model of type 'mdlm' \(MDLM, whose layers have time as an input\), not 'radd'",
        ),
        ({"model_type": "llada"}, r"a model of type 'llada' \(LLaDA"),
        ({"model_type": "t5"}, "a model of type 't5', not 'radd': radd_hf does not have its network"),
        (SEDD, "model.type='ddit' .* must be 'ddit_wot', the network of RADD; 'ddit' is SEDD's, which has time as an"),
        ({}, "it must have 'model_type', like ours, or 'tokens' and a mapping 'model', like the authors'"),
        ({"tokens": 96, "model": {"type": "ddit_wot"}}, "lacks 'hidden_size'"),
    ],
)
def test_another_model_is_told_what_it_is(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    refuse(tmp_path, message)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_whole_model_of_another_type_is_refused_by_the_class_too(tmp_path, kind):
    small = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    make = {"bert": lambda: BertForMaskedLM(BertConfig(**small)), "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**small))}
    make[kind]().save_pretrained(tmp_path)
    refuse(tmp_path, f"it is a model of type '{kind}', not 'radd'")
    with pytest.raises(ValueError, match=f"it is a model of type '{kind}', not 'radd'"):
        RaddForMaskedLM.from_pretrained(tmp_path)


def test_an_adapter_is_told_what_it_is_of(tmp_path, whole):
    adapter = tmp_path / "checkpoint" / "adapter"
    base = load_model(str(whole))
    get_peft_model(base, LoraConfig(target_modules=["qkv_proj"])).save_pretrained(adapter)
    refuse(adapter, rf"is a LORA adapter of '{whole}', and not a whole model\. .* merge_and_unload")
    shutil.copy(whole / "config.json", adapter.parent)
    refuse(adapter, rf"is a LORA adapter of '{whole}'. The folder around it has the model with the adapter added: pass")


def test_a_training_run_of_the_authors_is_told_to_be_converted(tmp_path, whole):
    refuse(GOLDEN / "run", "is a training run of the authors' code. Convert it first: radd convert .*run FOLDER")
    file = GOLDEN / "run" / "checkpoints-meta" / "checkpoint.pth"
    refuse(file, r"is a file, .*\. Convert it first: radd convert .*checkpoint\.pth FOLDER")
    refuse(whole / "model.safetensors", "is a file, and a model is a folder or a repository. Pass its folder")
    refuse(tmp_path / "nothing", "Cannot find model=.*: no such folder, and no reachable Hub repository")
    refuse(tmp_path, r"is a folder without a config\.json")


# ---------------------------------------------------------------------------------------------------------
# Tokenizers


def config_of(vocab_size: int, **settings) -> RaddConfig:
    return RaddConfig(vocab_size=vocab_size, hidden_size=8, num_attention_heads=2, **settings)


def test_a_tokenizer_fits_by_its_highest_id_and_its_mask():
    with_mask = letters(range(3), mask_token="c")
    check_tokenizer(with_mask, config_of(3))
    check_tokenizer(with_mask, config_of(64, mask_token_id=2))
    with pytest.raises(ValueError, match="has its mask 'c' at id 2, and the model at 3: it must be the tokenizer"):
        check_tokenizer(with_mask, config_of(4))
    with pytest.raises(ValueError, match="has ids up to 2, and the model has 2 tokens: it belongs to another model"):
        check_tokenizer(with_mask, config_of(2))
    from_one = letters(range(1, 4))
    with pytest.raises(ValueError, match="has ids up to 3, and the model has 3 tokens"):
        check_tokenizer(from_one, config_of(3))
    with pytest.raises(ValueError, match="has the token 'c' at id 3, where the model has its mask"):
        check_tokenizer(from_one, config_of(4))


def test_a_tokenizer_without_a_mask_fits_if_no_token_has_the_masks_id():
    check_tokenizer(letters(range(2)), config_of(3))  # as GPT-2's, with the authors' models
    check_tokenizer(letters([0, 5]), config_of(7))


def test_ids_that_pad_the_vocabulary_are_no_tokens():
    check_tokenizer(letters(range(3)), config_of(8, num_tokens=3))
    with pytest.raises(ValueError, match="has ids up to 3, and the model has 3 tokens"):
        check_tokenizer(letters([0, 1, 3]), config_of(8, num_tokens=3))


def test_a_tokenizer_without_a_mask_must_end_where_the_models_mask_is():
    check_tokenizer(letters(range(7)), config_of(8))
    with pytest.raises(
        ValueError, match=r"has no mask and ids up to 2\. The model has its mask at id 7, which is not the next one"
    ):
        check_tokenizer(letters(range(3)), config_of(8))


# ---------------------------------------------------------------------------------------------------------
# Every way in


@pytest.fixture
def ways_in(tiny_text, tmp_path):
    """Each script and command that takes a model, with the tiny text."""
    output = str(tmp_path / "output")

    def train_on(name: str) -> None:
        # The text is not there: the model must be refused before it is looked for.
        train.main(["--dataset", "/no/such/text", "--init_from", name, "--output_dir", output])

    return {
        "eval_ppl": lambda name: perplexity.main(["--model", name, "--dataset", str(tiny_text)]),
        "eval_generation": lambda name: samples.main(["--model", name, "--n_samples", "2", "--output", output]),
        "generate": lambda name: load(name),
        "init_from": train_on,
    }


EVERY_WAY = pytest.mark.parametrize("way", ["eval_ppl", "eval_generation", "generate", "init_from"])


@EVERY_WAY
def test_every_way_in_refuses_a_damaged_model(ways_in, changed, way):
    with pytest.raises(ValueError, match=rf"(model|init_from)='.*missing {UP}"):
        ways_in[way](changed(drop=[UP]))


@EVERY_WAY
def test_every_way_in_refuses_a_tokenizer_with_another_mask(ways_in, changed, tiny_tokenizer, way):
    with pytest.raises(ValueError, match=r"has its mask '<\|mask\|>' at id 299, and the model at 298"):
        ways_in[way](changed(mask_token_id=298))


def test_generate_refuses_such_a_tokenizer_with_a_text(whole, tiny_tokenizer):
    model = RaddForMaskedLM.from_pretrained(whole, mask_token_id=298)
    with pytest.raises(ValueError, match=r"has its mask '<\|mask\|>' at id 299, and the model at 298"):
        model.generate(prefix="It was", length=12, tokenizer=tiny_tokenizer)


def test_blanks_are_not_encoded_by_such_a_tokenizer(tiny_tokenizer):
    assert encode_blanks("[MASK:2]", tiny_tokenizer, 299) == [299, 299]
    with pytest.raises(ValueError, match=r"has its mask '<\|mask\|>' at id 299, and the model at 298"):
        encode_blanks("[MASK:2]", tiny_tokenizer, 298)


def test_the_command_line_says_it_in_one_line(changed, capsys):
    assert cli.main(["generate", changed(drop=[UP]), "It was [MASK]"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"missing {UP}" in error
