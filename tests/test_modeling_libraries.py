# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A model works with PEFT, the Trainer, the pipelines and accelerate as any other of transformers does."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from radd_hf import RaddForMaskedLM
from support.models import LAYERS, MASK, L, V, draw_ids, draw_labels, finite, make_config, make_model, masked_lm_loss


def test_lora_on_all_linear_layers_trains_saves_and_merges(tmp_path):
    peft = pytest.importorskip("peft")
    base, ids = make_model(), draw_ids()
    original = copy.deepcopy(base)
    labels = draw_labels(ids)
    lora = peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear", r=4))
    assert torch.equal(lora(input_ids=ids).logits, original(ids).logits)
    adapted = {name.split(".lora_A")[0].split("base_model.model.")[-1] for name, _ in lora.named_parameters()}
    for layer in range(LAYERS):
        for linear in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            assert f"model.layers.{layer}.{linear}" in adapted
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = lora(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    lora.eval()
    expected = lora(input_ids=ids).logits
    positions = ids == MASK
    pruned = lora(input_ids=ids, output_positions=positions).logits
    torch.testing.assert_close(finite(pruned), finite(expected[positions]), rtol=1e-4, atol=1e-4)
    lora.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(original), tmp_path)
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
    assert not (loaded.generate(input_ids=ids, method="ordered") == MASK).any()
    merged = loaded.merge_and_unload()
    assert isinstance(merged, RaddForMaskedLM)
    torch.testing.assert_close(finite(merged(ids).logits), finite(expected), rtol=1e-3, atol=1e-4)


def test_lora_on_the_output_layer_still_rules_out_the_mask():
    peft = pytest.importorskip("peft")
    base, ids = make_model(), draw_ids()
    lora = peft.get_peft_model(base, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    logits = lora(input_ids=ids).logits
    assert logits[..., MASK].isneginf().all()
    assert logits[..., :MASK].isfinite().all()
    loss = lora(input_ids=ids, labels=draw_labels(ids)).loss
    torch.testing.assert_close(loss, masked_lm_loss(logits, draw_labels(ids)))


SENTENCES = ["the cat sat on the mat.", "a dog ran to the big red house.", "we read old books at night."]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stock Trainer, the ordinary masked-LM loss, a stock collator: trainer, tokenizer, losses, evaluation."""
    transformers = pytest.importorskip("transformers")
    from radd_hf.data.documents import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(SENTENCES * 50, vocab_size=300)
    tokenizer.pad_token = tokenizer.eos_token
    config = make_config(vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, num_hidden_layers=2)
    model = RaddForMaskedLM(config)
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in SENTENCES] * 64
    folder = tmp_path_factory.mktemp("trainer")
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=120,
        per_device_train_batch_size=12,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.3)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:6], data_collator=collator)
    trainer.train()
    evaluation = trainer.evaluate()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, tokenizer, losses, evaluation


def test_the_stock_trainer_lowers_the_loss(trained):
    trainer, _, losses, evaluation = trained
    assert losses[0] == pytest.approx(math.log(trainer.model.config.vocab_size - 1), rel=1e-3), "a uniform law at first"
    assert sum(losses[-20:]) / 20 < 0.5 * losses[0]
    assert evaluation["eval_loss"] < 0.5 * losses[0]


def test_the_stock_trainer_saves_what_it_trained(trained):
    trainer, ids = trained[0], draw_ids()
    loaded = RaddForMaskedLM.from_pretrained(trainer.args.output_dir)
    assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.parametrize("asked", [False, True])
def test_the_stock_trainer_evaluates_and_its_metrics_get_logits_if_they_are_asked_for(tmp_path, asked):
    from transformers import Trainer, TrainingArguments

    model, ids, seen = make_model(), draw_ids(), []
    rows = [{"input_ids": row, "labels": labels} for row, labels in zip(ids, draw_labels(ids), strict=True)]

    def collate(rows: list[dict]) -> dict:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return batch | ({"output_logits": True} if asked else {})

    trainer = Trainer(
        model,
        TrainingArguments(tmp_path, use_cpu=True, report_to=[], disable_tqdm=True, per_device_eval_batch_size=2),
        eval_dataset=rows,
        data_collator=collate,
        compute_metrics=lambda prediction: seen.append(prediction) or {},
    )
    assert trainer.evaluate()["eval_loss"] > 0
    (prediction,) = seen
    shapes = [(3, L, V)] if asked else []
    assert [each.shape for each in prediction.predictions] == [*shapes, (3,), (3, L)]
    if asked:
        torch.testing.assert_close(finite(torch.tensor(prediction.predictions[0])), finite(model(ids).logits))


def test_the_fill_mask_pipeline_fills_the_mask(trained):
    from transformers import pipeline

    trainer, tokenizer, *_ = trained
    model = trainer.model.eval()
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    whole = tokenizer(SENTENCES[0])["input_ids"]
    for position in range(len(whole)):
        ids = list(whole)
        ids[position] = tokenizer.mask_token_id
        law = model(torch.tensor([ids])).logits[0, position].softmax(dim=-1)
        answers = fill(tokenizer.decode(ids), top_k=3)
        assert [answer["token"] for answer in answers] == law.topk(3).indices.tolist()
        assert answers[0]["score"] == pytest.approx(law.max().item(), rel=1e-4)
    everything = fill(f"the cat {tokenizer.mask_token} on the mat.", top_k=len(tokenizer))
    assert sum(answer["score"] for answer in everything) == pytest.approx(1, abs=1e-4)
    assert next(answer["score"] for answer in everything if answer["token"] == tokenizer.mask_token_id) == 0


def test_a_device_map_never_splits_a_layer():
    accelerate = pytest.importorskip("accelerate")
    model = make_model(num_hidden_layers=6)
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    device_map = accelerate.infer_auto_device_map(
        model, max_memory={"cpu": 3 * layer, "disk": 100 * layer}, no_split_module_classes=model._no_split_modules
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    assert not [name for name in device_map if name.startswith("model.layers.") and name.count(".") > 2]


@pytest.mark.parametrize("offloaded", ["model.embed_tokens", "model.layers", "lm_head"])
def test_offloaded_weights_give_equal_logits(model, tmp_path, offloaded):
    accelerate = pytest.importorskip("accelerate")
    ids = draw_ids()
    labels = draw_labels(ids)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers": "cpu", "model.norm": "cpu"}
    places |= {"lm_head": "cpu", offloaded: "disk"}
    net = accelerate.dispatch_model(
        copy.deepcopy(model), places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu", "meta"}
    with torch.no_grad():
        # But for rounding: a layer with hooks is called as torch made it.
        torch.testing.assert_close(net(ids).logits, model(ids).logits)
        at_masks = {"output_positions": ids == MASK}
        torch.testing.assert_close(net(ids, **at_masks).logits, model(ids, **at_masks).logits)
        torch.testing.assert_close(net(ids, labels=labels).loss, model(ids, labels=labels).loss)
    draws = [m.generate(ids, generator=torch.Generator().manual_seed(0)) for m in (net, model)]
    assert torch.equal(*draws)


def test_from_pretrained_takes_a_device_map(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = RaddForMaskedLM.from_pretrained(tmp_path, device_map="auto")
    torch.testing.assert_close(loaded(draw_ids()).logits, model(draw_ids()).logits)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    places |= {"model.norm": "cpu", "lm_head": "cpu"}
    loaded = RaddForMaskedLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    with torch.no_grad():
        torch.testing.assert_close(loaded(draw_ids()).logits, model(draw_ids()).logits)


@pytest.mark.parametrize("record", [{}, {"output_hidden_states": True}], ids=str)
@pytest.mark.parametrize("ask", ["everything", "output_positions"])
def test_layers_may_live_on_two_devices(ask, record):
    """As under device_map="auto" with two GPUs: accelerate moves what each module is given to its device.

    The tensors are fake, without values, and refuse to meet across devices. "meta" plays the second GPU.
    """
    hooks = pytest.importorskip("accelerate.hooks")
    with torch.device("meta"):
        model = RaddForMaskedLM._from_config(make_config(), attn_implementation="eager").eval()
    first = [model.model.embed_tokens, *model.model.layers[:-1]]
    second = [model.model.layers[-1], model.model.norm, model.lm_head]
    with torch.no_grad(), FakeTensorMode():
        for device, modules in (("cpu", first), ("meta", second)):
            for module in modules:
                for part in module.modules():
                    for name, parameter in part.named_parameters(recurse=False):
                        values = torch.empty(parameter.shape, device=device)
                        setattr(part, name, nn.Parameter(values, requires_grad=False))
                hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device=device))
        hooks.add_hook_to_module(model, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
        ids = torch.zeros(3, L, dtype=torch.long)
        positions = {"output_positions": ids[:, :2]} if ask == "output_positions" else {}
        logits = model(ids, **positions, **record).logits
    assert logits.shape == (3, 2 if positions else L, V)
    assert logits.device.type == "cpu"
