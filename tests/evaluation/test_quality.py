"""Quality of generated text: entropy and distinct n-grams by the book, likelihood under a judge by hand; its cost."""

import copy
import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)

from radd_hf.evaluation import quality
from radd_hf.evaluation.quality import (
    distinct_n,
    expected_nfe,
    judge,
    load_judge,
    spread_rows,
    text_figures,
    token_entropy,
    write_samples,
)
from radd_hf.noise_radd import get_noise, reveal_probabilities
from radd_hf.plan_radd import plan_grid, plan_sequence
from support.judges import LIMIT, random_judge
from support.toys import FlatNetwork, random_model, seeded

TEXTS = ["It is a truth", "a single man must be in want of a wife.", "x", "zebra universally", "must be in want"]


@pytest.fixture
def write_judge(tmp_path, tiny_tokenizer):
    """Saves a judge and its tokenizer, whose EOS serves as BOS if it is to have one; returns the folder."""

    def write(model, bos: bool = True) -> str:
        folder = str(tmp_path / "judge")
        tiny_tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if bos:
            tokenizer.bos_token = tokenizer.eos_token
            tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def gpt2(write_judge):
    return load_judge(write_judge(random_judge("gpt2")))


def log_likelihood(text: str, model, tokenizer, limit: int = LIMIT) -> tuple[float, int]:
    """By hand: the sum of log p(token | tokens before it), each from a forward of its own; the number of terms."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    ids = ids[:limit]
    total = 0.0
    for position in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:position]])).logits[0, -1]
        total += logits.double().log_softmax(0)[ids[position]].item()
    return total, len(ids) - 1


# ---------------------------------------------------------------------------------------------------------
# Entropy
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequence", "entropy"),
    [
        ([7], 0.0),
        ([5, 5, 5, 5], 0.0),
        ([1, 9, 9, 1], math.log(2)),
        ([0, 1, 2, 3, 4], math.log(5)),
        ([3, 50256, 3, 8], 0.5 * math.log(2) + 2 * 0.25 * math.log(4)),
    ],
)
def test_the_entropy_of_known_frequencies_is_exact(sequence, entropy):
    assert token_entropy([torch.tensor(sequence)]) == pytest.approx(entropy, rel=1e-14)


def test_the_entropy_is_averaged_over_samples_not_pooled():
    apart = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2], [1, 2, 1, 2]])
    assert token_entropy(apart) == token_entropy(list(apart)) == pytest.approx(math.log(2) / 3)


def test_samples_of_any_lengths_count_alike():
    assert token_entropy([torch.tensor([1, 2]), torch.arange(8)]) == pytest.approx((math.log(2) + math.log(8)) / 2)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one sequence"),
        ([torch.tensor([1]), torch.tensor([], dtype=torch.long)], r"sequences\[1\] must be \(L,\)"),
        (torch.tensor([1, 2, 3]), r"sequences\[0\] must be \(L,\)"),
    ],
)
def test_what_has_no_entropy_is_refused(sequences, message):
    with pytest.raises(ValueError, match=message):
        token_entropy(sequences)


# ---------------------------------------------------------------------------------------------------------
# Distinct n-grams
# ---------------------------------------------------------------------------------------------------------


def test_distinct_n_is_the_share_of_different_n_grams_of_all_samples():
    samples = [[1, 2, 1, 2, 1], [2, 1, 3]]
    for n in (1, 2, 3):
        grams = [tuple(row[start : start + n]) for row in samples for start in range(len(row) - n + 1)]
        assert distinct_n([torch.tensor(row) for row in samples], n) == len(set(grams)) / len(grams)
    assert distinct_n([torch.tensor(row) for row in samples], 2) == 3 / 6  # 12 21 13


def test_samples_that_resemble_one_another_lower_distinct_n_though_not_the_entropy():
    apart = torch.arange(8).view(2, 4)
    alike = torch.arange(4).expand(2, 4)
    assert token_entropy(apart) == token_entropy(alike)
    assert (distinct_n(apart, 2), distinct_n(alike, 2)) == (1.0, 0.5)


def test_no_n_gram_reaches_over_the_border_of_a_sample():
    assert distinct_n([torch.tensor([1, 2]), torch.tensor([1, 2])], 2) == 0.5
    assert distinct_n([torch.tensor([1, 2]), torch.tensor([3])], 2) == 1.0  # the second sample has none


@pytest.mark.parametrize(
    ("sequences", "n", "message"),
    [
        ([torch.tensor([1, 2])], 0, "n=0 must be an integer of at least 1"),
        ([torch.tensor([1, 2])], 3, "at least one sequence of n=3 tokens"),
        ([], 1, "at least one sequence"),
        (torch.tensor([1, 2, 3]), 1, r"sequences\[0\] must be \(L,\)"),
    ],
)
def test_what_has_no_n_grams_is_refused(sequences, n, message):
    with pytest.raises(ValueError, match=message):
        distinct_n(sequences, n)


# ---------------------------------------------------------------------------------------------------------
# Likelihood
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_judgement_is_the_log_likelihood_token_by_token(write_judge, architecture, bos):
    model, tokenizer = load_judge(write_judge(random_judge(architecture), bos))
    texts = TEXTS if bos else [text for text in TEXTS if text != "x"]  # one token, and nothing before it
    by_hand = [log_likelihood(text, model, tokenizer) for text in texts]
    n_tokens = sum(count for _, count in by_hand)
    result = judge(texts, model, tokenizer, batch_size=3)
    assert (result.n_tokens, result.n_texts) == (n_tokens, len(texts))
    assert result.nats_per_token == pytest.approx(-sum(value for value, _ in by_hand) / n_tokens, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_token))
    assert result.perplexity_error == pytest.approx(result.perplexity * result.standard_error)


def test_a_tokenizer_that_adds_a_bos_of_itself_gets_only_one(gpt2):
    model, tokenizer = gpt2
    expected = judge(TEXTS, model, tokenizer)
    tokenizer.add_bos_token = True
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert judge(TEXTS, model, tokenizer) == expected


def test_the_end_of_a_document_is_the_judges_own(gpt2):
    model, tokenizer = gpt2
    n_letters = sum(len(tokenizer.encode(word)) for word in ("single", "truth"))
    result = judge(["single</s>truth"] * 2, model, tokenizer, eos_token="</s>")
    assert result == judge(["single<|endoftext|>truth"] * 2, model, tokenizer, eos_token="<|endoftext|>")
    assert result.n_tokens == 2 * (n_letters + 1)
    assert judge(["single</s>truth"], model, tokenizer).n_tokens > n_letters + 1
    tokenizer.eos_token = None
    expected = judge(["single\n\ntruth"] * 2, model, tokenizer)
    assert judge(["single</s>truth"] * 2, model, tokenizer, eos_token="</s>") == expected


def test_what_spells_a_special_token_of_the_judge_is_its_characters(gpt2):
    model, tokenizer = gpt2
    expected = sum(len(tokenizer.encode(part)) for part in ("<|", "endoftext", "|>"))
    assert judge(["<|endoftext|>"], model, tokenizer).n_tokens == expected > 1


def test_neither_batch_size_nor_padding_nor_order_matters(gpt2):
    expected = judge(TEXTS, *gpt2, batch_size=1)
    for batch_size in (2, 3, 100):
        for texts in (TEXTS, TEXTS[::-1]):
            result = judge(texts, *gpt2, batch_size=batch_size)
            assert result.nats_per_token == pytest.approx(expected.nats_per_token, rel=1e-6)
            assert result.standard_error == pytest.approx(expected.standard_error, rel=1e-5)
            assert result.n_tokens == expected.n_tokens


def test_every_token_counts_once_whatever_text_it_is_in(gpt2):
    alone = [judge([text], *gpt2) for text in TEXTS]
    n_tokens = sum(result.n_tokens for result in alone)
    pooled = sum(result.nats_per_token * result.n_tokens for result in alone) / n_tokens
    assert judge(TEXTS, *gpt2).nats_per_token == pytest.approx(pooled, rel=1e-6)
    assert pooled != pytest.approx(statistics.mean(result.nats_per_token for result in alone), rel=1e-3)


def test_texts_beyond_the_context_are_cut_off_and_counted(gpt2):
    model, tokenizer = gpt2
    fits = tokenizer.decode(tokenizer.encode(TEXTS[1] * 9)[: LIMIT - 1])
    assert len(tokenizer.encode(fits)) == LIMIT - 1  # and a BOS
    result = judge([TEXTS[1] * 9, "x", fits], model, tokenizer)
    assert (result.n_truncated, result.n_tokens) == (1, 2 * (LIMIT - 1) + 1)
    assert judge([TEXTS[1] * 9], model, tokenizer).nats_per_token == pytest.approx(
        judge([fits], model, tokenizer).nats_per_token
    )


def test_max_length_counts_the_bos(gpt2):
    result = judge(TEXTS, *gpt2, max_length=4)
    by_hand = [log_likelihood(text, *gpt2, limit=4) for text in TEXTS]
    assert result.n_tokens == sum(count for _, count in by_hand) == 3 * 4 + 1
    assert result.n_truncated == 4
    assert result.nats_per_token == pytest.approx(-sum(value for value, _ in by_hand) / result.n_tokens, rel=1e-6)


def test_the_error_for_texts_of_one_length_is_that_of_a_plain_mean(gpt2):
    texts = [text for text in TEXTS if text != "x"]
    alone = [judge([text], *gpt2, max_length=4) for text in texts]
    expected = statistics.stdev(result.nats_per_token for result in alone) / len(texts) ** 0.5
    assert judge(texts, *gpt2, max_length=4).standard_error == pytest.approx(expected, rel=1e-5)


def test_the_error_for_texts_of_many_lengths_agrees_with_the_jackknife(gpt2):
    model, tokenizer = gpt2
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 299, (40, 10), generator=generator)
    lengths = torch.randint(2, 11, (40,), generator=generator)
    texts = [tokenizer.decode(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    alone = [judge([text], model, tokenizer) for text in texts]
    n_tokens = torch.tensor([result.n_tokens for result in alone]).double()
    nats = torch.tensor([result.nats_per_token for result in alone]).double() * n_tokens
    without_one = (nats.sum() - nats) / (n_tokens.sum() - n_tokens)
    jackknife = (39 / 40 * (without_one - without_one.mean()).square().sum()).sqrt().item()
    assert judge(texts, model, tokenizer).standard_error == pytest.approx(jackknife, rel=0.01)


def test_one_text_has_no_error(gpt2):
    assert math.isnan(judge(["a single man"], *gpt2).standard_error)


def test_a_judge_in_low_precision_has_its_softmax_in_float32(gpt2):
    model, tokenizer = gpt2
    model.to(torch.bfloat16)
    value, count = log_likelihood("a single man", model, tokenizer)
    low = model(torch.tensor([[0, *tokenizer.encode("a single man")]])).logits[0].log_softmax(-1)
    low = -low[:-1].gather(1, torch.tensor(tokenizer.encode("a single man"))[:, None]).double().mean().item()
    result = judge(["a single man"], model, tokenizer).nats_per_token
    assert abs(result + value / count) < abs(low + value / count) / 4


def test_a_judge_in_training_mode_is_judged_without_dropout_and_left_as_it_was(gpt2):
    model, tokenizer = gpt2
    expected = judge(TEXTS, model, tokenizer)
    model.train()
    assert judge(TEXTS, model, tokenizer) == expected
    assert model.training


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        ([], {}, "at least one text"),
        ("a single man", {}, "must be a list"),
        (["x"], {"batch_size": 0}, "batch_size=0"),
        (["x"], {"max_length": 1}, "max_length=1 must be at least 2 and at most 16"),
        (["x"], {"max_length": 17}, "max_length=17"),
    ],
)
def test_bad_arguments_are_refused_by_name(gpt2, texts, arguments, message):
    with pytest.raises(ValueError, match=message):
        judge(texts, *gpt2, **arguments)


def test_texts_without_a_token_to_score_are_left_out_and_counted(gpt2):
    expected = judge(TEXTS, *gpt2)
    result = judge(["", *TEXTS, ""], *gpt2)
    assert result == replace(expected, n_empty=2)
    assert judge(["", ""], *gpt2) is None


def test_without_a_bos_a_single_token_cannot_be_scored(write_judge):
    model, tokenizer = load_judge(write_judge(random_judge("gpt2"), bos=False))
    assert TEXTS[2] == "x"
    assert judge(TEXTS, model, tokenizer).n_empty == 1
    assert judge(["x"], model, tokenizer) is None


# ---------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------


def test_a_judge_is_loaded_in_float32_for_evaluation(write_judge):
    model, tokenizer = load_judge(write_judge(random_judge("llama").to(torch.bfloat16).train()))
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    assert tokenizer.bos_token_id == 0


@pytest.mark.parametrize(
    ("name", "cause"), [("no/such/folder", "Repo id must be"), ("nobody/nothing", "Cannot find the requested files")]
)
def test_a_judge_that_is_not_there_is_named_with_the_cause(name, cause):
    with pytest.raises(ValueError, match=rf"judge='{name}' cannot be loaded: .*{cause}"):
        load_judge(name)


def test_a_judge_with_damaged_weights_is_refused(write_judge, tmp_path):
    folder = write_judge(random_judge("gpt2"))
    (tmp_path / "judge/model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"judge=.* cannot be loaded: its weights are damaged or cut short"):
        load_judge(folder)


def test_a_judge_without_a_head_is_refused(write_judge):
    with pytest.raises(ValueError, match=r"judge=.* does not hold the weights of .* missing lm_head\.weight"):
        load_judge(write_judge(random_judge("llama").model))


def test_a_masked_model_is_no_judge(write_judge):
    with pytest.raises(ValueError, match=r"judge=.*RADD fills masks and is not a causal"):
        load_judge(write_judge(random_model(vocab_size=301)))


def test_a_model_that_looks_ahead_is_no_judge(write_judge):
    """AutoModelForCausalLM loads BERT, with a warning alone."""
    with pytest.raises(ValueError, match=r"judge=.* depend on later tokens"):
        load_judge(write_judge(random_judge("bert")))


def test_a_gguf_file_is_read_from_its_folder_for_configuration_tokenizer_and_weights(write_judge, monkeypatch):
    """Without the package gguf: what transformers would read from the file, it reads here from the folder."""
    folder = write_judge(random_judge("llama"))
    expected = judge(TEXTS, *load_judge(folder))
    asked = []
    for auto_class in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):

        def from_pretrained(source, *, read=auto_class.from_pretrained, **settings):
            asked.append((source, settings.pop("gguf_file")))
            return read(source, **settings)

        monkeypatch.setattr(quality, auto_class.__name__, SimpleNamespace(from_pretrained=from_pretrained))
    assert judge(TEXTS, *load_judge(f"{folder}/judge.gguf")) == expected
    assert asked == [(folder, "judge.gguf")] * 3


def test_a_gguf_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"judge='.*/judge.gguf' cannot be loaded: .*a \.gguf file in either"):
        load_judge(str(tmp_path / "judge.gguf"))


# ---------------------------------------------------------------------------------------------------------
# Samples, what they cost, and the figures of a text
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [40, 7])
@pytest.mark.parametrize("steps", [1, 8, 100])
@pytest.mark.parametrize("method", ["tweedie", "euler"])
@pytest.mark.parametrize("noise_type", ["loglinear", "geometric"])
def test_the_expected_nfe_of_a_grid_is_the_mean_over_simulated_plans(noise_type, method, steps, masked):
    config, rows = FlatNetwork(4, 40, noise_type).config, 4000
    reveal = reveal_probabilities(get_noise(config), method, steps)
    canvas = torch.arange(40).expand(rows, -1) < masked
    plans = plan_grid(canvas, reveal, torch.rand(rows, 40, generator=seeded(1), dtype=torch.float64))
    counts = torch.tensor([len(set(plan) - {-1}) for plan in plans.tolist()]).double()
    error = counts.mean().item() - expected_nfe(config, method, steps, masked)
    assert abs(error) <= 4 * counts.std().item() / rows**0.5 + 1e-6


@pytest.mark.parametrize("masked", [40, 7])
@pytest.mark.parametrize("steps", [None, 1, 8, 100])
def test_the_expected_nfe_without_a_grid_is_the_number_of_events_of_any_plan(steps, masked):
    config = FlatNetwork(4, 40).config
    canvas = (torch.arange(40) < masked)[None]
    priority = torch.rand(1, 40, generator=seeded(2))
    assert expected_nfe(config, "ordered", steps, masked) == plan_sequence(canvas, priority, steps).max() + 1
    assert expected_nfe(config, "first_hitting", steps, masked) == plan_sequence(canvas, priority).max() + 1


def test_log_linear_noise_has_the_closed_form():
    for steps, masked in ((8, 128), (128, 128), (1024, 128)):
        expected = steps * (1 - (1 - 1 / steps) ** masked)
        assert expected_nfe(FlatNetwork(4, 8).config, "tweedie", steps, masked) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("method", "message"), [("gibbs", "method='gibbs'"), ("tweedie", "steps=None")])
def test_a_plan_that_is_not_there_has_no_expected_nfe(method, message):
    with pytest.raises(ValueError, match=message):
        expected_nfe(FlatNetwork(4, 8).config, method, None, 8)


def test_a_sample_is_the_same_whatever_batch_it_is_written_in_and_whoever_writes_it():
    model = random_model(vocab_size=30, max_position_embeddings=12)
    expected = write_samples(model, 7, seed=3, steps=8)
    assert (expected.ids.shape, expected.evaluations.shape) == ((7, 12), (7,))
    assert len(expected.ids.unique(dim=0)) == 7
    for batch_size in (1, 3):
        samples = write_samples(model, 7, seed=3, batch_size=batch_size, steps=8)
        assert torch.equal(samples.ids, expected.ids)
        assert torch.equal(samples.evaluations, expected.evaluations)
    assert torch.equal(write_samples(model, 4, seed=3, steps=8).ids, expected.ids[:4])


def test_processes_share_the_samples_and_each_gets_all_of_them(monkeypatch):
    model, gathered = random_model(vocab_size=30, max_position_embeddings=12), []
    expected = write_samples(model, 5, steps=8)

    def gather(mine: list) -> list:
        gathered.append(mine)
        return mine

    monkeypatch.setattr(quality, "gather_object", gather)
    write_samples(model, 5, accelerator=SimpleNamespace(process_index=1, num_processes=2), steps=8)
    others, (seconds,) = gathered
    assert [index for index, _, _ in others] == [1, 3]
    monkeypatch.setattr(quality, "gather_object", lambda mine: mine + (others if len(mine) == 3 else [seconds + 100]))
    samples = write_samples(model, 5, accelerator=SimpleNamespace(process_index=0, num_processes=2), steps=8)
    assert torch.equal(samples.ids, expected.ids)
    assert torch.equal(samples.evaluations, expected.evaluations)
    assert samples.seconds == seconds + 100, "of the slowest"


def test_the_cost_of_samples_is_a_mean_with_its_error():
    samples = write_samples(random_model(vocab_size=30, max_position_embeddings=12), 5, steps=8)
    counts = samples.evaluations.tolist()
    assert samples.nfe == pytest.approx(statistics.mean(counts))
    assert samples.nfe_error == pytest.approx(statistics.stdev(counts) / 5**0.5)
    assert samples.seconds_per_sample == samples.seconds / 5 > 0


@pytest.mark.parametrize("setting", ["n_samples", "batch_size"])
def test_no_samples_and_empty_batches_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting}=0"):
        write_samples(FlatNetwork(4, 8), **{"n_samples": 2, setting: 0})


def test_rows_of_a_text_are_spread_over_all_of_it():
    rows = list(torch.arange(20).view(10, 2))
    assert spread_rows(rows, 5)[:, 0].tolist() == [0, 4, 8, 12, 16]
    assert torch.equal(spread_rows(rows, 10), torch.stack(rows))
    with pytest.raises(ValueError, match="count=11 must be at least 1 and at most 10, the rows of the text"):
        spread_rows(rows, 11)


def test_texts_reach_the_judge_as_they_were_written(gpt2, tiny_tokenizer):
    """Special tokens and spaces before punctuation included."""
    text = f"a single man , must be{tiny_tokenizer.mask_token} in"
    ids = torch.tensor([tiny_tokenizer.encode(text)] * 2)
    figures = text_figures(ids, tiny_tokenizer, gpt2)
    assert figures["judgement"]["nats_per_token"] == judge([text], *gpt2).nats_per_token
    assert figures["judgement"]["perplexity"] == math.exp(figures["judgement"]["nats_per_token"])
    assert (figures["token_entropy"], figures["distinct_2"]) == (token_entropy(ids), distinct_n(ids, 2))
    assert text_figures(ids, tiny_tokenizer)["judgement"] is None


def test_the_writers_end_of_a_document_becomes_the_judges(gpt2, tiny_tokenizer):
    writer = copy.deepcopy(tiny_tokenizer)
    writer.eos_token = "wife"
    ids = torch.tensor([tiny_tokenizer.encode("a single wife must be in")] * 2)
    figures = text_figures(ids, writer, gpt2)
    expected = judge(["a single <|endoftext|> must be in"] * 2, *gpt2, eos_token="<|endoftext|>")
    assert figures["judgement"]["nats_per_token"] == expected.nats_per_token


def test_the_entropy_of_texts_is_a_mean_with_its_error(tiny_tokenizer):
    ids = torch.tensor([[1, 2, 3, 4], [1, 1, 2, 2], [5, 5, 5, 5]])
    entropies = [math.log(4), math.log(2), 0.0]
    figures = text_figures(ids, tiny_tokenizer)
    assert figures["token_entropy"] == pytest.approx(statistics.mean(entropies))
    assert figures["token_entropy_error"] == pytest.approx(statistics.stdev(entropies) / 3**0.5)
