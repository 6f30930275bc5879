"""The likelihood of rows: each as if it were alone, refused by itself, with masks of its own number."""

import math

import pytest
import torch

from radd_hf.jobs.scoring import RowScorer, columns_to_score, encode_parts, row_seed
from radd_hf.likelihood import ESTIMATORS, compute_together, conditional_likelihood, estimate_likelihood
from radd_hf.text_radd import encode_after_text, encode_text
from support.tokenizer_kinds import KINDS, page
from support.tokenizers import letters
from support.toys import random_model

LENGTH = 16
TEXT = "It is a truth"
ROWS = [
    {"text": TEXT},
    {"text": "truth universally"},
    {"prefix": "It is a", "continuation": " truth"},
    {"text": "It"},
    {"prefix": "", "continuation": "truth"},
    {"text": "It is a truth universally acknowledged, that a single man must be in want of a wife."},
    {"text": "truth is a it"},
]
NUMBERS = [7, 3, 11, 0, 2, 5, 10**12]
FIGURES = ("nats", "standard_error", "nats_per_token", "bits_per_byte", "bits_per_byte_error")


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=300, max_position_embeddings=LENGTH)


@pytest.fixture
def scorer(model, tiny_tokenizer):
    def make(**settings):
        return RowScorer(model, tiny_tokenizer, **{"passes": 4} | settings)

    return make


def ids_of(text: str, tokenizer) -> torch.Tensor:
    return torch.tensor(encode_text([text], tokenizer)[0])


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name] == (pytest.approx(value, rel=1e-6, abs=1e-6) if name in FIGURES else value), name


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_a_row_among_others_has_the_result_that_it_has_alone(scorer, estimator, batch_tokens):
    together = scorer(estimator=estimator, batch_tokens=batch_tokens)(ROWS, NUMBERS)
    alone = [scorer(estimator=estimator)([row], [number])[0] for row, number in zip(ROWS, NUMBERS, strict=True)]
    assert len(together) == len(ROWS)
    for one, other in zip(together, alone, strict=True):
        assert one["error"] is None
        assert_same(one, other)


def test_the_order_of_the_rows_is_that_of_the_results(scorer):
    forth = scorer()(ROWS, NUMBERS)
    back = scorer()(ROWS[::-1], NUMBERS[::-1])[::-1]
    for one, other in zip(forth, back, strict=True):
        assert_same(one, other)
    assert len({result["nats"] for result in forth}) == len(ROWS)


def test_a_result_is_that_of_estimate_likelihood_with_the_seed_of_the_row(scorer, model, tiny_tokenizer):
    (result,) = scorer(seed=5)([{"text": TEXT}], [9])
    ids = ids_of(TEXT, tiny_tokenizer)
    found = estimate_likelihood(model, [ids], passes=4, seed=row_seed(5, 9), n_bytes=len(TEXT))
    assert (result["tokens"], result["bytes"], result["blocks"]) == (len(ids), len(TEXT), 1)
    assert result["nats"] == pytest.approx(found.nats_per_token * len(ids), rel=1e-6)
    assert result["standard_error"] == pytest.approx(found.standard_error * len(ids), rel=1e-5)
    assert result["nats_per_token"] == pytest.approx(found.nats_per_token, rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(result["nats"] / math.log(2) / len(TEXT))
    assert result["bits_per_byte_error"] == pytest.approx(result["standard_error"] / math.log(2) / len(TEXT))


def test_the_same_text_in_two_rows_or_with_two_seeds_has_other_masks(scorer):
    one, two = scorer()([{"text": TEXT}] * 2, [0, 1])
    (three,) = scorer(seed=1)([{"text": TEXT}], [0])
    assert len({result["nats"] for result in (one, two, three)}) == 3


@pytest.mark.parametrize("order", ["forward", "backward", "confidence", "entropy"])
def test_a_pair_has_the_conditional_likelihood_of_its_continuation(scorer, model, tiny_tokenizer, order):
    pairs = [("It is a", " truth"), ("It", " is a truth"), ("", "truth")]
    rows = [{"prefix": prefix, "continuation": continuation} for prefix, continuation in pairs]
    results = scorer(estimator=f"ar_{order}")(rows, range(3))
    prefixes = [ids_of(prefix, tiny_tokenizer) for prefix, _ in pairs]
    targets = [ids_of(continuation, tiny_tokenizer) for _, continuation in pairs]
    expected = conditional_likelihood(model, targets, prefixes=prefixes, order=order)
    assert [result["nats"] for result in results] == pytest.approx(expected.tolist(), rel=1e-6)
    assert [result["tokens"] for result in results] == [len(target) for target in targets]
    assert [result["bytes"] for result in results] == [len(continuation) for _, continuation in pairs]
    assert [result["standard_error"] for result in results] == [0.0] * 3


def test_white_space_that_ends_a_prefix_belongs_to_the_continuation(scorer):
    spaced, plain = scorer(estimator="ar_forward")(
        [{"prefix": "It is ", "continuation": "a truth"}, {"prefix": "It is", "continuation": " a truth"}], [0, 0]
    )
    assert_same(spaced, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_and_continuation_are_encoded_as_the_harness_encodes_them(kind):
    """It encodes both together, and takes the tokens behind those of the context alone."""
    tokenizer = KINDS[kind]()
    for text in page()[:20]:
        words = text.split(" ")
        prefix, continuation = " ".join(words[:4]), " " + " ".join(words[4:])
        row = encode_parts({"prefix": prefix, "continuation": continuation}, tokenizer, 1000)
        (whole,), (context,) = encode_text([prefix + continuation], tokenizer), encode_text([prefix], tokenizer)
        if whole[: len(context)] == context:
            assert row.blocks[0].tolist() == whole
            assert row.blocks[0][row.scored[0]].tolist() == whole[len(context) :]
        else:
            assert row.blocks[0].tolist() == context + encode_after_text([continuation], tokenizer)[0]


def test_a_long_text_is_cut_into_blocks_each_scored_by_itself(scorer, model, tiny_tokenizer):
    text = ROWS[5]["text"]
    ids = ids_of(text, tiny_tokenizer)
    (result,) = scorer(estimator="ar_forward")([{"text": text}], [0])
    found = estimate_likelihood(model, list(ids.split(LENGTH)), estimator="ar_forward")
    assert len(ids) > LENGTH
    assert result["blocks"] == math.ceil(len(ids) / LENGTH)
    assert result["tokens"] == len(ids)
    assert result["nats"] == pytest.approx(found.nats_per_token * len(ids), rel=1e-6)


def test_each_row_reaches_the_error_that_was_asked_for_by_passes_of_its_own(scorer):
    scored = scorer(passes=2**16, target_se=0.05).score(ROWS, NUMBERS)
    assert all(row.likelihood.standard_error <= 0.05 for row in scored)
    assert len({row.likelihood.passes for row in scored}) > 1


def test_a_row_that_cannot_reach_its_error_says_so_beside_what_was_found(scorer):
    reached, unreached = scorer(passes=32, target_se=0.01, estimator="k_DCE")([{"text": "I"}, ROWS[0]], [0, 1])
    assert reached["error"] is None
    assert unreached["error"].startswith("target_se=0.01 would take about")
    assert unreached["standard_error"] > 0.01 * unreached["tokens"]


def test_what_is_exact_in_an_order_reaches_every_error(scorer):
    results = scorer(target_se=1e-9, estimator="ar_forward")(ROWS, NUMBERS)
    assert all(result["error"] is None for result in results)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ""}, "text='' has no token; it must have at least one."),
        ({"text": 5}, "text=5 must be a string."),
        ({"text": "A\udcff"}, "lone surrogate"),
        ({"text": "A" * (2**20 + 1)}, "it must have at most 1048576."),
        ({"text": "A", "continuation": "B"}, "one or the other"),
        ({"text": None, "prefix": "A"}, "the row has nothing to score"),
        ({"prefix": "A", "continuation": ""}, "continuation='' has no token"),
        ({"prefix": "A ", "continuation": ""}, "continuation='' has no token"),
        ({"prefix": 5, "continuation": "B"}, "prefix=5 must be a string."),
        ({"prefix": "A " * 30, "continuation": "B"}, "must together have at most the model's 16 tokens: shorten"),
        ({}, "the row has nothing to score"),
        ("It is", "row='It is' must be a mapping"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused_by_itself(scorer, row, message):
    before, refused, after = scorer()([ROWS[0], row, ROWS[1]], [0, 1, 2])
    assert message in refused["error"]
    assert "\n" not in refused["error"]
    assert all(value is None for name, value in refused.items() if name not in ("row", "error"))
    assert_same(before, scorer()([ROWS[0]], [0])[0])
    assert_same(after, scorer()([ROWS[1]], [2])[0])


def test_a_text_with_unknown_tokens_has_no_figure_per_byte():
    tokenizer = letters(range(10))  # to which "a" stands for the unknown, and "x" is
    model = random_model(vocab_size=11, max_position_embeddings=LENGTH)
    known, unknown, before = RowScorer(model, tokenizer, passes=4)(
        [{"text": "bcd"}, {"text": "bxc"}, {"prefix": "x", "continuation": "bc"}], [0, 1, 2]
    )
    assert known["bits_per_byte"] > 0
    assert known["bytes"] == 3
    assert (unknown["bytes"], unknown["bits_per_byte"], unknown["bits_per_byte_error"]) == (None, None, None)
    assert unknown["nats"] > 0
    assert before["bytes"] == 2, "what is only given need not be known"


def test_no_rows_have_no_results(scorer):
    assert scorer()([], []) == []


def test_numbers_that_overflow_are_an_error_of_the_row(tiny_tokenizer):
    model = random_model(vocab_size=300, max_position_embeddings=LENGTH)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    (result,) = RowScorer(model, tiny_tokenizer)([{"text": TEXT}], [0])
    assert result["nats"] is None
    assert "overflow in torch.float32" in result["error"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "exact"}, r"estimator='exact' must be one of"),
        ({"passes": 3}, r"passes=3 must be a positive multiple of 2"),
        ({"target_se": 0}, r"target_se=0 must be a positive number"),
        ({"batch_tokens": 0}, r"batch_tokens=0 must be an integer of at least 1"),
        ({"seed": 0.5}, r"seed=0.5 must be an integer"),
    ],
)
def test_settings_that_are_wrong_are_refused_by_name_before_any_row(scorer, settings, message):
    with pytest.raises(ValueError, match=message):
        scorer(**settings)


def test_rows_of_equal_length_share_forwards(scorer, model, monkeypatch):
    forward, rows = type(model).forward, []

    def count(self, input_ids=None, **keywords):
        rows.append(len(input_ids))
        return forward(self, input_ids=input_ids, **keywords)

    monkeypatch.setattr(type(model), "forward", count)
    scorer(passes=2, batch_tokens=10_000)([{"text": TEXT}] * 50, range(50))
    assert rows == [100]


@pytest.mark.parametrize(("estimator", "rows_of_a_text"), [("k_stratified", 4), ("ar_forward", 5), ("k_DCE", 4)])
def test_forwards_are_full_though_no_round_divides_a_batch(
    scorer, model, tiny_tokenizer, monkeypatch, estimator, rows_of_a_text
):
    forward, sizes = type(model).forward, []

    def count(self, input_ids=None, **keywords):
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **keywords)

    monkeypatch.setattr(type(model), "forward", count)
    text = tiny_tokenizer.decode(encode_text(["It is a truth universally"], tiny_tokenizer)[0][:5])
    assert len(ids_of(text, tiny_tokenizer)) == 5
    scorer(passes=4, batch_tokens=15, estimator=estimator)([{"text": text}] * 9, range(9))
    assert sizes == [3] * (9 * rows_of_a_text // 3)


def test_nothing_to_compute_together_is_done_at_once():
    assert compute_together([], 100) == []


def test_the_columns_of_a_file_are_scored_that_are_named_so_or_by_the_user():
    assert columns_to_score(["id", "text"]) == {"text": "text"}
    assert columns_to_score(["prefix", "continuation"]) == {"prefix": "prefix", "continuation": "continuation"}
    assert columns_to_score(["text", "body", "continuation"], "body") == {"text": "body"}


@pytest.mark.parametrize(
    ("columns", "text_column", "message"),
    [
        (["id", "prefix"], None, r"\['id', 'prefix'\] have neither 'text' nor 'continuation'"),
        (["text", "prefix"], None, "have both 'text' and 'prefix'"),
        (["text", "continuation"], None, "have both 'text' and 'continuation'"),
        (["text"], "body", r"text_column='body' must be one of \['text'\]"),
    ],
)
def test_columns_that_leave_open_what_is_scored_are_refused(columns, text_column, message):
    with pytest.raises(ValueError, match=message):
        columns_to_score(columns, text_column)


def test_a_row_is_read_from_the_columns_that_were_named(scorer):
    (named,) = scorer(columns={"text": "body"})([{"body": TEXT, "text": "another", "continuation": "B"}], [0])
    assert_same(named, scorer()([{"text": TEXT}], [0])[0])


def test_the_totals_of_results_give_the_bits_per_byte_of_all_text(scorer):
    work = scorer()
    results = work(ROWS[:2], [0, 1])
    totals = {name: sum(work.summed(result)[name] for result in results) for name in work.summed(results[0])}
    bits = sum(result["nats"] for result in results) / math.log(2) / sum(result["bytes"] for result in results)
    assert f"{bits:.4f} +- " in work.summary(totals)
    unknown = work.summed({"tokens": 3, "bytes": None, "nats": 9.0, "standard_error": 1.0})
    assert work.summary(unknown) == "3 tokens"
