"""The collator: the stock Trainer trains as the script does, documents and padding stay apart."""

import pickle

import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.data.collator import DiffusionCollator, LoaderPass
from radd_hf.losses import LOSS_TYPES
from radd_hf.training import train as script
from support.launches import TINY, metrics
from support.toys import random_model

CONFIG = RaddConfig(
    vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8, eos_token_id=0
)


def blocks(n: int = 8, length: int = 8) -> torch.Tensor:
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_calls_are_the_steps_of_the_same_seed(loss_type):
    collator, x0 = DiffusionCollator(CONFIG, loss_type, seed=3), blocks()
    features = [{"input_ids": row} for row in x0]
    for step in range(3):
        called, asked = collator(features), DiffusionCollator(CONFIG, loss_type, seed=3).rows(x0, step, range(8), 8)
        assert called.keys() == asked.keys() == {"input_ids", "labels", "loss_weights"}
        assert all(torch.equal(called[name], asked[name]) for name in called)


def test_each_process_has_its_rows_of_one_stratified_step(monkeypatch):
    x0, parts = blocks(), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(DiffusionCollator(CONFIG, seed=3)([{"input_ids": row} for row in x0[4 * rank : 4 * rank + 4]]))
    whole = DiffusionCollator(CONFIG, seed=3).rows(x0, 0, range(8), 8)
    assert all(torch.equal(torch.cat([part[name] for part in parts]), whole[name]) for name in whole)


def test_workers_draw_from_streams_of_their_own():
    collator = DiffusionCollator(CONFIG, seed=3)
    dataset = [{"input_ids": row} for row in blocks(16)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collator, num_workers=2)
    epochs = [torch.cat([batch["loss_weights"] for batch in loader]) for _ in range(2)]
    assert len(set(torch.cat(epochs).tolist())) == 32


@pytest.fixture
def train(tmp_path):
    """Trains with the stock Trainer, two epochs of 11 batches; returns weights, draws and losses of evaluation."""

    def run(name: str, resume_from: str | None = None, dropout: float = 0.0, **settings) -> dict:
        draws = []

        class Recorded(Trainer):
            def training_step(self, model, inputs, *rest):
                draws.append(inputs["loss_weights"].tolist())
                return super().training_step(model, inputs, *rest)

        torch.manual_seed(0)
        model = RaddForMaskedLM(RaddConfig(**CONFIG.to_diff_dict() | {"hidden_dropout": dropout}))
        arguments = TrainingArguments(
            str(tmp_path / name),
            per_device_train_batch_size=4,
            max_steps=22 // settings.get("gradient_accumulation_steps", 1),
            save_steps=4,
            eval_steps=3,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **settings,
        )
        examples = [{"input_ids": row} for row in blocks(44)]
        trainer = Recorded(
            model,
            arguments,
            train_dataset=examples,
            eval_dataset=examples[:10],
            data_collator=DiffusionCollator(CONFIG, seed=3),
        )
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(tmp_path / resume_from))
        losses = {record["step"]: record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record}
        return {"weights": model.state_dict(), "draws": draws, "losses": losses}

    return run


def same_weights(one: dict, other: dict) -> bool:
    return all(torch.equal(one["weights"][name], weight) for name, weight in other["weights"].items())


@pytest.mark.parametrize(
    "loading",
    [
        {},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        {"gradient_accumulation_steps": 2},
    ],
    ids=["one process", "workers", "workers that stay", "accumulation"],
)
def test_the_stock_trainer_draws_by_seed_epoch_and_batch_resumed_or_evaluated_in_between_or_not(train, loading):
    whole = train("whole", **loading)
    evaluated = train("evaluated", eval_strategy="steps", **loading)
    assert same_weights(whole, evaluated)
    weights = [weight for batch in whole["draws"] for weight in batch]
    assert len(set(weights)) == len(weights), "new masks in every step of every epoch"
    steps = len(whole["draws"]) // loading.get("gradient_accumulation_steps", 1)
    for step in (4, 4 * -(-steps // 8)):  # in the first epoch and in the second
        resumed = train("resumed", f"evaluated/checkpoint-{step}", eval_strategy="steps", **loading)
        assert same_weights(whole, resumed)
        assert resumed["draws"] == whole["draws"][-len(resumed["draws"]) :]


def test_a_resumed_run_of_the_stock_trainer_has_the_dropout_and_the_evaluations_of_one_that_was_not(train):
    whole = train("whole", dropout=0.1, eval_strategy="steps")
    resumed = train("resumed", "whole/checkpoint-8", dropout=0.1, eval_strategy="steps")
    assert same_weights(whole, resumed)
    assert resumed["losses"] == whole["losses"]


def test_workers_of_the_trainer_draw_what_one_process_draws(train):
    assert train("one")["draws"] == train("workers", dataloader_num_workers=2)["draws"]


def test_a_collator_that_is_sent_to_a_worker_knows_which_loader_asks():
    """As where workers are spawned, which know nothing of the process that started them."""
    data, collator = list(blocks(12)), DiffusionCollator(CONFIG, seed=3)
    loader = Accelerator(cpu=True).prepare(torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collator))
    loader.set_epoch(2)
    batches = iter(loader)
    next(batches)
    sent = pickle.loads(pickle.dumps(collator))
    assert sent.inherited == LoaderPass(epoch=2, skipped=0, batches=3, calls=2)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("eos", [0, [0, 8]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.usefixtures("default_dtype")
def test_separated_documents_are_scored_as_each_alone(attention, dtype, eos):
    model = random_model(vocab_size=12, max_position_embeddings=8, eos_token_id=eos, attn_implementation=attention)
    model, ends = model.to(dtype), [4, 6] if isinstance(eos, list) else [4]
    x0 = torch.tensor([[1, 2, 3, 0, 4, 8, 6, 7]])
    inputs = DiffusionCollator(model.config, "k_DCE", seed=1, separate_documents=True).rows(x0, 0, range(1), 1)
    assert inputs["attention_mask"].dtype == torch.bool
    with torch.no_grad():
        packed = model(**inputs).token_nll
        alone = [
            model(inputs["input_ids"][:, begin:end], labels=inputs["labels"][:, begin:end]).token_nll
            for begin, end in zip([0, *ends], [*ends, 8], strict=True)
        ]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=tolerance, atol=tolerance)
    assert (packed > 0).any()


@pytest.mark.usefixtures("default_dtype")
def test_lengths_do_not_depend_on_the_default_dtype():
    assert DiffusionCollator(CONFIG, seed=1, random_length_fraction=0.5).n_tokens(3, 800, 1000) == 598_190


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 11], r"input_ids holds 11 at row 1, position 2; clean ids lie in 0 \.\. 11 and are not the mask, 11"),
        ([1, -100, 2], "input_ids holds -100 at row 1, position 1"),
        ([1, 2, 12], "input_ids holds 12 at row 1, position 2"),
        ([0.5, 1.0, 2.0], "input_ids has .* dtype torch.float32; it must hold clean ids"),
    ],
)
def test_ids_that_are_the_mask_or_none_are_refused_with_their_place(ids, message):
    """On a GPU the model could not tell without waiting, and its loss would be infinite."""
    features = [{"input_ids": torch.zeros(3, dtype=torch.tensor(ids).dtype)}, {"input_ids": torch.tensor(ids)}]
    with pytest.raises(ValueError, match=message):
        DiffusionCollator(CONFIG)(features)


def test_ids_of_few_bits_are_ids():
    found, expected = (DiffusionCollator(CONFIG, seed=1)(list(x0)) for x0 in (blocks().to(torch.uint8), blocks()))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_short_rows_are_uniform_in_length_and_count_as_many_tokens():
    collator, x0 = DiffusionCollator(CONFIG, "lambda_DCE", seed=1, random_length_fraction=1.0), blocks(4000)
    inputs = collator.rows(x0, 0, range(4000), 4000)
    lengths = inputs["attention_mask"].sum(dim=1)
    assert collator.n_tokens(0, 8, 4000) == lengths.sum()
    counts = torch.bincount(lengths, minlength=9)[1:]
    assert ((counts - 500).abs() < 5 * (500 * 7 / 8) ** 0.5).all()
    assert not (inputs["labels"] != -100)[inputs["attention_mask"] == 0].any()
    part = collator.rows(x0[10:20], 0, range(10, 20), 4000)
    assert torch.equal(part["attention_mask"], inputs["attention_mask"][10:20])
    assert "attention_mask" not in DiffusionCollator(CONFIG, seed=1).rows(x0, 0, range(4000), 4000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "elbo"}, "loss_type='elbo' must be one of"),
        ({"random_length_fraction": 1.5}, r"random_length_fraction=1\.5 must lie in"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionCollator(CONFIG, **settings)


def test_documents_without_an_end_and_blocks_of_several_lengths_are_refused():
    for eos in (None, []):
        with pytest.raises(ValueError, match=r"separate_documents=True needs config\.eos_token_id"):
            DiffusionCollator(RaddConfig(vocab_size=12, eos_token_id=eos), separate_documents=True)
    for empty in ([[], []], [torch.zeros(0, dtype=torch.long)]):
        with pytest.raises(ValueError, match=r"input_ids has shape .* \(B, L\) integers, at least one"):
            DiffusionCollator(CONFIG)(empty)
    with pytest.raises(ValueError, match=r"blocks of one length; got lengths \[\]"):
        DiffusionCollator(CONFIG)([])
    with pytest.raises(ValueError, match=r"blocks of one length; got lengths \[3, 4\]"):
        DiffusionCollator(CONFIG)([{"input_ids": [1, 2, 3]}, {"input_ids": [1, 2, 3, 4]}])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_stock_trainer_has_the_losses_of_the_script(tmp_path, tiny_text, loss_type):
    """Same blocks, seed and AdamW: the loss of every step agrees, so draws, weights and clipping do."""
    settings = TINY | {"dataset": str(tiny_text), "hidden_dropout": 0.0, "log_steps": 1, "loss_type": loss_type}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    script.main([*flags, "--output_dir", str(tmp_path / "script")])
    expected = [record["nats_per_token"] for record in metrics(tmp_path / "script") if "nats_per_token" in record]

    model_args, data_args, args = script.parse_arguments(flags)
    data = script.load_data(data_args, args, None, None)
    torch.manual_seed(args.seed)
    model = RaddForMaskedLM(script.make_config(model_args, data_args, args, None, data))
    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            losses.extend([logs["loss"]] if "loss" in logs else [])

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    InOrder(
        model,
        TrainingArguments(
            str(tmp_path / "trainer"),
            per_device_train_batch_size=8,
            max_steps=8,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[block for step in range(8) for block in data.blocks.rows(step, range(8))],
        data_collator=DiffusionCollator(model.config, loss_type, seed=args.seed),
        callbacks=[Losses()],
    ).train()
    assert [loss / data_args.length for loss in losses] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([{}], r"features\[0\] has the keys \[\]; 'input_ids' must be there"),
        ([[1, 2], {"ids": [1]}], r"features\[1\] has the keys \['ids'\]; 'input_ids' must be there"),
        ([{"input_ids": "abc"}], r"features\[0\]='abc' must be a tensor, or lists of numbers"),
        ([[2**70]], r"features\[0\]=.* must be a tensor, or lists of numbers"),
        ([[[1, 2]]], r"features\[0\] .*; it must hold the ids of a block, \(L,\)"),
    ],
)
def test_an_example_without_ids_is_named(features, message):
    collator = DiffusionCollator(random_model().config, "lambda_DCE", seed=0)
    with pytest.raises(ValueError, match=message):
        collator(features)
