"""The interface of generate(): what each argument does, which source of a setting wins, and what is refused."""

import time

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, TextDiffusionStreamer, TextStreamer
from transformers.generation import MinPLogitsWarper

from radd_hf import RaddConfig, RaddForMaskedLM, RaddGenerateOutput, RaddGenerationConfig
from radd_hf.generation_radd import LENGTHS
from support.toys import random_model, seeded

V, M, L = 300, 299, 12


@pytest.fixture
def model():
    return random_model(vocab_size=V, max_position_embeddings=L)


# ---------------------------------------------------------------------------------------------------------
# Canvases
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [[1, 2], torch.tensor([1, 2]), torch.tensor([[1, 2]]), [[1, 2]], (1, 2)])
def test_a_prefix_may_be_a_list_a_tuple_a_row_or_a_batch(model, prefix):
    ids = model.generate(prefix=prefix, generator=seeded())
    assert ids.shape == (1, L)
    assert ids[0, :2].tolist() == [1, 2]


def test_texts_of_different_lengths_make_one_batch(model, tiny_tokenizer):
    prefix, suffix = ["a wife", "a single man in want"], "."
    ids = model.generate(prefix=prefix, suffix=suffix, length=30, tokenizer=tiny_tokenizer, generator=seeded())
    for row, text in zip(ids, prefix, strict=True):
        decoded = tiny_tokenizer.decode(row)
        assert decoded.startswith(text)
        assert decoded.endswith(suffix)


def test_the_suffix_ends_at_the_length(model):
    ids = model.generate(prefix=[[1], [2, 3]], suffix=[7, 8], length=9, generator=seeded())
    assert ids.shape == (2, 9)
    assert ids[:, -2:].tolist() == [[7, 8], [7, 8]]
    assert ids[1, :2].tolist() == [2, 3]


def test_any_masked_canvas_is_filled_and_the_callers_tensor_left_alone(model):
    canvas = torch.tensor([[5, M, 6, M, M, 7], [M, 1, 2, 3, 4, 5]])
    before = canvas.clone()
    ids = model.generate(canvas, generator=seeded())
    assert torch.equal(canvas, before)
    assert torch.equal(ids[canvas != M], canvas[canvas != M])
    assert (ids != M).all()


def test_a_row_without_masks_is_returned_without_an_evaluation(model):
    output = model.generate([[1, 2, 3], [1, M, 3]], return_dict_in_generate=True)
    assert output.sequences[0].tolist() == [1, 2, 3]
    assert output.num_function_evaluations.tolist() == [0, 1]


def test_max_new_tokens_are_the_masks_between_prefix_and_suffix(model):
    ids = model.generate(prefix=[1, 2], suffix=[7], max_new_tokens=5, generator=seeded())
    assert torch.equal(ids, model.generate(prefix=[1, 2], suffix=[7], length=8, generator=seeded()))
    assert model.generate(max_new_tokens=5, generator=seeded()).shape == (1, 5)


def test_max_new_tokens_continue_the_ids_that_a_tokenizer_returns(model):
    given = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "attention_mask": torch.tensor([[1, 1], [0, 1]])}
    ids = model.generate(**given, max_new_tokens=5, generator=[seeded(1), seeded(2)])
    assert torch.equal(ids[:, :2], given["input_ids"])
    assert torch.equal(ids[:1], model.generate(prefix=[1, 2], length=7, generator=seeded(1)))
    assert torch.equal(ids[1:, 1:], model.generate(prefix=[4], length=6, generator=seeded(2)))


def test_prefixes_of_several_lengths_get_the_same_number_of_new_tokens(model):
    prefixes = [[1], [2, 3, 4]]
    ids = model.generate(prefix=prefixes, max_new_tokens=5, pad_token_id=9, generator=[seeded(1), seeded(2)])
    assert ids.shape == (2, 8)
    assert ids[0, :2].tolist() == [9, 9]
    for row, prefix, seed in zip(ids, prefixes, (1, 2), strict=True):
        alone = model.generate(prefix=prefix, max_new_tokens=5, generator=seeded(seed))
        assert torch.equal(row[-len(prefix) - 5 :], alone[0])


def test_padding_is_neither_filled_nor_seen(model):
    alone = model.generate([3, M, 4, M], temperature=0, generator=seeded())
    padded = model.generate(
        torch.tensor([[3, M, 4, M, 9, 9]]),
        attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]),
        temperature=0,
        generator=seeded(),
    )
    assert padded[0, 4:].tolist() == [9, 9]
    assert torch.equal(padded[:, :4], alone)


def test_one_row_may_come_with_one_row_of_attention_mask(model):
    assert model.generate([3, M, 9], attention_mask=[1, 1, 0], generator=seeded())[0, 2] == 9


def test_num_return_sequences_are_different_samples_of_each_canvas_in_order(model):
    ids = model.generate(prefix=[[1], [2]], num_return_sequences=3, generator=seeded())
    assert ids[:, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert len({tuple(row) for row in ids.tolist()}) == 6


# ---------------------------------------------------------------------------------------------------------
# Methods, draws and output
# ---------------------------------------------------------------------------------------------------------


def test_a_training_model_generates_without_dropout_and_goes_on_training():
    model = random_model(vocab_size=V, max_position_embeddings=L, hidden_dropout=0.5).train()
    first, second = (model.generate(temperature=0, generator=seeded()) for _ in range(2))
    assert torch.equal(first, second)
    assert model.training


def test_the_same_generator_gives_the_same_text_and_another_another(model):
    same = [model.generate(generator=seeded(3)) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], model.generate(generator=seeded(4)))


def test_without_a_generator_torchs_own_decides(model):
    torch.manual_seed(5)
    first = model.generate()
    torch.manual_seed(5)
    assert torch.equal(first, model.generate())


@pytest.mark.parametrize("name", ["order", "steps"])
def test_ordered_reveals_in_the_order_given(model, name):
    order = torch.randperm(L, generator=seeded())
    steps = {"steps": 5} if name == "steps" else {}
    output = model.generate(method="ordered", order=order, return_dict_in_generate=True, generator=seeded(), **steps)
    along = output.reveal_step[0, order].tolist()
    assert along == sorted(along)
    assert output.num_function_evaluations.item() == len(set(along)) == steps.get("steps", L)


def test_orders_may_differ_by_row_and_random_orders_do(model):
    orders = torch.stack([torch.arange(L), torch.arange(L).flip(0)])
    output = model.generate(
        prefix=[[], []], method="ordered", order=orders, return_dict_in_generate=True, generator=seeded()
    )
    assert output.reveal_step.tolist() == orders.tolist()
    random = model.generate(
        method="ordered", order="random", num_return_sequences=4, return_dict_in_generate=True, generator=seeded()
    ).reveal_step
    assert len({tuple(row) for row in random.tolist()}) == 4


def test_more_steps_than_masks_are_the_same_as_none(model):
    few, many = (model.generate(method="ordered", steps=steps, generator=seeded()) for steps in (None, 1000))
    assert torch.equal(few, many)


def test_history_shows_each_event_and_agrees_with_the_reveal_steps(model):
    output = model.generate(prefix=[1], output_history=True, return_dict_in_generate=True, generator=seeded())
    assert len(output.history) == output.num_function_evaluations.item() + 1
    assert torch.equal(output.history[-1], output.sequences)
    step_of_event = sorted(set(output.reveal_step[output.reveal_step >= 0].tolist()))
    for step, before, after in zip(step_of_event, output.history, output.history[1:], strict=False):
        assert torch.equal(before != after, output.reveal_step == step)
    assert output.reveal_step[0, 0] == -1


def test_token_logprobs_are_those_of_the_network_before_warping(model):
    output = model.generate(steps=1, temperature=0.3, top_k=5, return_dict_in_generate=True, generator=seeded())
    logits = model(torch.full((1, L), M)).logits
    expected = logits.log_softmax(-1).gather(-1, output.sequences[..., None]).squeeze(-1)
    torch.testing.assert_close(output.token_logprobs, expected, rtol=1e-5, atol=1e-5)


def test_a_logits_processor_sees_a_canvas_and_scores_for_every_revealed_position(model):
    seen = []

    def forbid_low_ids(canvases, scores):
        seen.append((canvases.shape, scores.shape))
        scores = scores.clone()
        scores[:, :250] = -torch.inf
        return scores

    output = model.generate(
        steps=3, logits_processor=[forbid_low_ids], return_dict_in_generate=True, generator=seeded()
    )
    assert (output.sequences >= 250).all()
    assert sum(canvas[0] for canvas, _ in seen) == L
    assert all(canvas[1] == L and scores[1] == V and canvas[0] == scores[0] for canvas, scores in seen)


def test_any_logits_processor_list_of_transformers_works(model):
    processors = LogitsProcessorList([MinPLogitsWarper(min_p=0.999999)])  # leaves the likeliest token alone
    ids = model.generate(method="ordered", logits_processor=processors, generator=seeded())
    assert torch.equal(ids, model.generate(method="ordered", temperature=0, generator=seeded()))


def test_one_generator_may_serve_each_row(model):
    alone = model.generate(generator=seeded(8))
    together = model.generate(num_return_sequences=3, generator=[seeded(7), seeded(8), seeded(9)])
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("method", ["tweedie", "euler", "first_hitting", "ordered"])
def test_chunked_logits_draw_the_same_tokens(model, method, monkeypatch):
    whole = model.generate(method=method, num_return_sequences=3, generator=seeded())
    monkeypatch.setattr("radd_hf.generation_radd.MAX_DRAW_ELEMENTS", 2 * V)
    assert torch.equal(whole, model.generate(method=method, num_return_sequences=3, generator=seeded()))


# ---------------------------------------------------------------------------------------------------------
# Ending early
# ---------------------------------------------------------------------------------------------------------


def test_stop_on_eos_freezes_a_row_and_pads_what_was_generated_after_it(model):
    plain = model.generate(
        method="ordered", prefix=[[1], [2]], suffix=[7], generator=seeded(), return_dict_in_generate=True
    )
    eos = plain.sequences[0, 4].item()  # the fourth token generated in the first row
    model.generation_config = RaddGenerationConfig(eos_token_id=eos, pad_token_id=0)
    stopped = model.generate(
        method="ordered",
        prefix=[[1], [2]],
        suffix=[7],
        stop_on_eos=True,
        generator=seeded(),
        return_dict_in_generate=True,
    )
    first = plain.sequences[0].tolist().index(eos, 1)
    assert stopped.sequences[0].tolist() == plain.sequences[0, : first + 1].tolist() + [0] * (L - first - 2) + [7]
    assert stopped.num_function_evaluations[0] == first
    assert (stopped.reveal_step[0, first + 1 :] == -1).all()
    assert (stopped.token_logprobs[0, first + 1 :] == 0).all()
    if eos not in plain.sequences[1, 1:-1]:
        assert torch.equal(stopped.sequences[1], plain.sequences[1])


def test_an_eos_behind_a_mask_does_not_stop_a_row(model):
    plain = model.generate(method="ordered", order="backward", generator=seeded(), return_dict_in_generate=True)
    eos = plain.sequences[0, -1].item()  # generated first; final only when all before it is
    model.generation_config = RaddGenerationConfig(eos_token_id=eos)
    stopped = model.generate(
        method="ordered", order="backward", stop_on_eos=True, generator=seeded(), return_dict_in_generate=True
    )
    assert stopped.num_function_evaluations == plain.num_function_evaluations
    first = plain.sequences[0].tolist().index(eos)
    assert stopped.sequences[0].tolist() == plain.sequences[0, :first].tolist() + [eos] * (L - first)


def test_a_given_eos_does_not_stop_a_row(model):
    model.generation_config = RaddGenerationConfig(eos_token_id=1, pad_token_id=0)
    settings = {
        "prefix": [1],
        "generator": seeded(),
        "logits_processor": [lambda _, s: s.index_fill(1, torch.tensor(1), -torch.inf)],
    }
    output = model.generate(stop_on_eos=True, return_dict_in_generate=True, **settings)
    assert (output.reveal_step >= 0).sum() == L - 1


def test_after_max_time_all_masks_are_filled_in_one_last_event(model):
    def slow(canvases, scores):
        time.sleep(0.05)
        return scores

    output = model.generate(
        prefix=[[1], [2, 3]],
        method="ordered",
        max_time=0.12,
        logits_processor=[slow],
        return_dict_in_generate=True,
        output_history=True,
        generator=seeded(),
    )
    assert (output.sequences != M).all()
    evaluations = output.num_function_evaluations
    assert (evaluations < 8).all()
    last = output.reveal_step.amax(dim=1)
    assert ((output.reveal_step == last[:, None]).sum(dim=1) > 1).all()
    assert torch.equal(last + 1, evaluations)


# ---------------------------------------------------------------------------------------------------------
# Streamers
# ---------------------------------------------------------------------------------------------------------


def test_a_diffusion_streamer_shows_each_event_and_then_the_text(model, tiny_tokenizer, capsys):
    output = model.generate(
        streamer=TextDiffusionStreamer(tiny_tokenizer), return_dict_in_generate=True, generator=seeded()
    )
    printed = capsys.readouterr().out
    assert printed.count("\033[33m") == output.num_function_evaluations.item()
    assert tiny_tokenizer.decode(output.sequences[0]).strip() in printed


def test_a_plain_text_streamer_prints_the_text(model, tiny_tokenizer, capsys):
    ids = model.generate(streamer=TextStreamer(tiny_tokenizer), generator=seeded())
    assert capsys.readouterr().out.strip() == tiny_tokenizer.decode(ids[0]).strip()


def test_a_streamer_may_keep_and_change_what_it_is_given(model):
    class Keeper:
        def __init__(self):
            self.drafts = []

        def put_draft(self, value):
            self.drafts.append(value.clone())
            value.fill_(0)

        def put(self, value):
            self.final = value

        def end(self):
            pass

    keeper = Keeper()
    ids = model.generate(steps=4, streamer=keeper, generator=seeded())
    assert torch.equal(keeper.final, ids)
    assert len({tuple(draft[0].tolist()) for draft in keeper.drafts}) == len(keeper.drafts)


def test_any_object_with_put_and_end_may_follow_a_batch(model):
    class Recorder:
        def __init__(self):
            self.calls = []

        def put_draft(self, value):
            self.calls.append(("draft", value.shape))

        def put(self, value):
            self.calls.append(("put", value.shape))

        def end(self):
            self.calls.append(("end", None))

    recorder = Recorder()
    model.generate(num_return_sequences=2, steps=1, streamer=recorder, generator=seeded())
    assert recorder.calls == [("draft", (2, L)), ("put", (2, L)), ("end", None)]


# ---------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "argument", "of_the_model", "evaluations"),
    [(1, 2, 3, 1), (None, 2, 3, 2), (None, None, 3, 3), (None, None, None, L)],
)
def test_keyword_then_argument_then_model_then_default(model, keyword, argument, of_the_model, evaluations):
    model.generation_config = RaddGenerationConfig(steps=of_the_model, method="ordered")
    output = model.generate(
        steps=keyword,
        generation_config=None if argument is None else RaddGenerationConfig(steps=argument),
        return_dict_in_generate=True,
        generator=seeded(),
    )
    assert output.num_function_evaluations.item() == evaluations


@pytest.mark.parametrize("name", LENGTHS)
def test_a_generation_config_survives_saving_with_every_setting(model, tmp_path, name):
    settings = {
        name: 7,
        "steps": 3,
        "method": "euler",
        "order": [0, 1],
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "use_cache": False,
        "cuda_graphs": False,
        "refresh_interval": 3,
        "refresh_window": 1,
        "stop_on_eos": True,
        "max_time": 1.5,
        "num_return_sequences": 2,
        "output_history": True,
        "return_dict_in_generate": True,
    }
    assert {*settings, *LENGTHS} == set(RaddGenerationConfig.DEFAULTS)
    model.generation_config = RaddGenerationConfig(**settings, eos_token_id=3, pad_token_id=4)
    model.save_pretrained(tmp_path)
    loaded = RaddForMaskedLM.from_pretrained(tmp_path).generation_config
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert (loaded.eos_token_id, loaded.pad_token_id) == (3, 4)


def test_saved_settings_a_method_has_no_use_for_are_passed_over(model):
    model.generation_config = RaddGenerationConfig(steps=3, use_cache=False, order="backward")
    output = model.generate(method="first_hitting", return_dict_in_generate=True, generator=seeded())
    assert isinstance(output, RaddGenerateOutput)
    assert output.num_function_evaluations.item() == L


def test_a_dictionary_may_stand_for_a_generation_config(model):
    ids = model.generate(generation_config={"length": 5}, generator=seeded())
    assert ids.shape == (1, 5)


def test_a_damaged_generation_config_is_not_passed_over(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{broken")
    with pytest.raises(OSError, match=r"generation_config\.json"):
        RaddForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_network_that_is_not_finite_is_reported(model, temperature):
    with torch.no_grad():
        model.lm_head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the network left a position without a finite score"):
        model.generate(temperature=temperature, generator=seeded())


def test_length_defaults_to_the_model_and_may_be_set(model):
    assert model.generate(generator=seeded()).shape == (1, L)
    assert model.generate(length=5, generator=seeded()).shape == (1, 5)
    assert model.generate([M, M], length=2, generator=seeded()).shape == (1, 2)


@pytest.mark.parametrize("value", LENGTHS)
@pytest.mark.parametrize("of_the_model", LENGTHS)
def test_a_length_of_the_call_replaces_either_length_of_the_model(model, value, of_the_model):
    model.generation_config = RaddGenerationConfig(**{of_the_model: 9})
    assert model.generate(**{value: 5}, generator=seeded()).shape == (1, 5)
    assert model.generate(generator=seeded()).shape == (1, 9)
    assert model.generate([1, M, M], generator=seeded()).shape == (1, 3)


# ---------------------------------------------------------------------------------------------------------
# Bad input: refused by name, before any evaluation
# ---------------------------------------------------------------------------------------------------------

CANVAS = torch.tensor([[1, M, M, 2]])
BAD = {
    # canvas
    "prefix and suffix fill the length": (
        {"prefix": [1] * 7, "suffix": [2] * 5},
        r"prefix \(7 tokens\) \+ suffix \(5 tokens\) leave nothing",
    ),
    "prefix fills the length": ({"prefix": [1] * L}, r"prefix \(12 tokens\) .* length=12; pass length > 12"),
    "one row of a batch is too long": ({"prefix": [[1], [1] * 20]}, r"prefix \(20 tokens\)"),
    "input_ids with prefix": ({"input_ids": CANVAS, "prefix": [1]}, "input_ids is the whole canvas"),
    "input_ids with suffix": ({"input_ids": CANVAS, "suffix": [1]}, "input_ids is the whole canvas"),
    "input_ids with another length": ({"input_ids": CANVAS, "length": 9}, "length=9, but input_ids"),
    "ragged input_ids": ({"input_ids": [[1, M], [M]]}, r"input_ids has rows of lengths \[1, 2\]"),
    "empty input_ids": ({"input_ids": []}, "input_ids has rows of lengths"),
    "input_ids without a mask": (
        {"input_ids": [[1, 2], [3, 4]]},
        r"input_ids has no mask \(id 299\), .* generate\(prefix=\.\.\., max_new_tokens=20\)",
    ),
    "rows of several lengths without padding": (
        {"prefix": [[1], [2, 3]], "max_new_tokens": 4},
        r"pad_token_id=None must be an id .* rows of lengths \[5, 6\]",
    ),
    "rows padded with the mask": (
        {"prefix": [[1], [2, 3]], "max_new_tokens": 4, "pad_token_id": M},
        "pad_token_id=299 must be an id other than the mask's",
    ),
    "rows padded with an id beyond the vocabulary": (
        {"prefix": [[1], [2, 3]], "max_new_tokens": 4, "pad_token_id": V},
        "pad_token_id holds the id 300",
    ),
    "two lengths": ({"length": 5, "max_new_tokens": 3}, "length=5 and max_new_tokens=3 both say"),
    "two names of a length": ({"length": 5, "max_length": 5}, "max_length=5 is another name of length=5"),
    "a bad value under another name": ({"max_length": 0}, "max_length=0 must be an integer of at least 1"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens=0 must be an integer of at least 1"),
    "an array of floats": ({"input_ids": np.ones((1, 4))}, r"input_ids has shape \(1, 4\) and dtype float64"),
    "an EOS without stop_on_eos": ({"eos_token_id": 1}, "eos_token_id=1 ends a text only with stop_on_eos=True"),
    "beams": ({"num_beams": 4}, "num_beams=4 is not an argument of RADD's generate: there is no beam search"),
    "no sampling": ({"do_sample": False}, "do_sample=False .* temperature=0 for the likeliest token"),
    "a slip": ({"num_return_sequence": 2}, "num_return_sequence=2 is not .*; did you mean num_return_sequences?"),
    "an unknown name": ({"zzz": 1}, "zzz=1 is not an argument of RADD's generate; those are attention_mask, "),
    "another model's generation config": (
        {"generation_config": GenerationConfig(num_beams=3)},
        "num_beams=3 is not a setting of RADD's generate",
    ),
    "float input_ids": ({"input_ids": torch.rand(1, 4)}, r"input_ids has shape \(1, 4\) and dtype torch.float32"),
    "boolean input_ids": ({"input_ids": torch.ones(4, dtype=torch.bool)}, "input_ids has shape"),
    "three-dimensional input_ids": ({"input_ids": torch.zeros(1, 1, 4, dtype=torch.long)}, "input_ids has shape"),
    "scalar input_ids": ({"input_ids": torch.tensor(3)}, "input_ids has shape"),
    "an id beyond the vocabulary": (
        {"input_ids": [1, V]},
        r"input_ids holds the id 300; the vocabulary has ids 0 .. 299",
    ),
    "a negative id": ({"prefix": [-1]}, "prefix holds the id -1"),
    "an id beyond the vocabulary in the suffix": ({"suffix": [5000]}, "suffix holds the id 5000"),
    "prefix and suffix of different batches": (
        {"prefix": [[1], [2]], "suffix": [[1], [2], [3]]},
        "prefix has 2 rows and suffix 3",
    ),
    "text without tokenizer": ({"prefix": "It was"}, "prefix='It was' is text: pass tokenizer="),
    "texts without tokenizer": ({"suffix": ["a", "b"]}, "suffix=.* is text"),
    "attention_mask without input_ids": (
        {"attention_mask": torch.ones(1, L)},
        "attention_mask describes padding of input_ids",
    ),
    "attention_mask of another shape": (
        {"input_ids": CANVAS, "attention_mask": torch.ones(1, 3)},
        r"attention_mask has shape \(1, 3\)",
    ),
    "attention_mask hides a mask": (
        {"input_ids": CANVAS, "attention_mask": torch.tensor([[1, 1, 0, 1]])},
        "attention_mask is 0 at a mask",
    ),
    # numbers
    "length zero": ({"length": 0}, "length=0 must be an integer of at least 1"),
    "length negative": ({"length": -3}, "length=-3"),
    "length fractional": ({"length": 7.5}, "length=7.5"),
    "length a string": ({"length": "7"}, "length='7'"),
    "length boolean": ({"length": True}, "length=True"),
    "steps zero": ({"steps": 0}, "steps=0 must be an integer of at least 1"),
    "steps negative": ({"steps": -1}, "steps=-1"),
    "steps fractional": ({"steps": 2.5}, "steps=2.5"),
    "steps of first_hitting": ({"steps": 4, "method": "first_hitting"}, "steps=4: method='first_hitting'"),
    "num_return_sequences zero": ({"num_return_sequences": 0}, "num_return_sequences=0"),
    "num_return_sequences fractional": ({"num_return_sequences": 1.5}, "num_return_sequences=1.5"),
    "temperature negative": ({"temperature": -0.1}, "temperature=-0.1 must be a number >= 1e-6 and <= 1e30, or 0"),
    "temperature not a number": ({"temperature": float("nan")}, "temperature=nan"),
    "temperature infinite": ({"temperature": float("inf")}, "temperature=inf"),
    "temperature a string": ({"temperature": "hot"}, "temperature='hot'"),
    "temperature boolean": ({"temperature": True}, "temperature=True"),
    "temperature that divides everything to zero": ({"temperature": 1e300}, r"temperature=1e\+300"),
    "temperature beyond all numbers": ({"temperature": 10**400}, "temperature=an integer of 1329 bits must be"),
    "top_k negative": ({"top_k": -1}, "top_k=-1 must be an integer of at least 0"),
    "top_k fractional": ({"top_k": 0.9}, "top_k=0.9"),
    "top_k a string": ({"top_k": "5"}, "top_k='5'"),
    "top_p zero": ({"top_p": 0}, r"top_p=0 must be in \(0, 1\]"),
    "top_p above one": ({"top_p": 1.5}, "top_p=1.5"),
    "top_p negative": ({"top_p": -0.5}, "top_p=-0.5"),
    "top_p not a number": ({"top_p": float("nan")}, "top_p=nan"),
    "top_p a string": ({"top_p": "0.9"}, "top_p='0.9'"),
    "max_time zero": ({"max_time": 0}, "max_time=0 must be a positive number of seconds"),
    "max_time negative": ({"max_time": -1.0}, "max_time=-1.0"),
    "max_time not a number": ({"max_time": float("nan")}, "max_time=nan"),
    "max_time infinite": ({"max_time": float("inf")}, "max_time=inf must be a positive number"),
    "max_time beyond all numbers": ({"max_time": 10**400}, "max_time=an integer of 1329 bits"),
    "steps beyond what memory holds": (
        {"steps": 10**9},
        "steps=1000000000 must be an integer of at least 1 and at most 1000000; the limit .* method='first_hitting'",
    ),
    "steps beyond 64 bits": ({"steps": 2**70}, "steps=1180591620717411303424"),
    "steps of ordered beyond what memory holds": ({"steps": 10**9, "method": "ordered"}, "steps=1000000000 must be"),
    "length beyond what memory holds": ({"length": 2**40}, "length=1099511627776 must be .* at most 16777216"),
    "new tokens beyond what memory holds": ({"max_new_tokens": 2**63}, "max_new_tokens=9223372036854775808 must be"),
    "more rows than memory holds": (
        {"num_return_sequences": 2**40},
        "num_return_sequences=1099511627776 of 1 rows of 12 tokens must have at most 16777216 tokens together",
    ),
    "rows beyond 64 bits": ({"num_return_sequences": 2**63}, "num_return_sequences=9223372036854775808 must be"),
    "top_k beyond 64 bits": ({"top_k": 2**63}, "top_k=9223372036854775808 must be"),
    "refresh_interval beyond 64 bits": ({"refresh_interval": 2**64}, "refresh_interval=18446744073709551616 must be"),
    "refresh_window beyond 64 bits": (
        {"refresh_interval": 2, "refresh_window": 2**63},
        "refresh_window=9223372036854775808 must be",
    ),
    "refresh_window boolean": ({"refresh_window": True}, "refresh_window=True must be an integer"),
    "seed beyond 64 bits": ({"seed": 2**63, "generator": None}, "seed=9223372036854775808 must be an integer in 0"),
    "seed boolean": ({"seed": True, "generator": None}, "seed=True must be an integer"),
    "seed negative": ({"seed": -1, "generator": None}, "seed=-1 must be an integer"),
    "max_time a string": ({"max_time": "1s"}, "max_time='1s'"),
    # names and switches
    "unknown method": ({"method": "ddim"}, "method='ddim' must be one of"),
    "method in capitals": ({"method": "Tweedie"}, "method='Tweedie' must be one of"),
    "method a number": ({"method": 3}, "method=3"),
    "use_cache a word": ({"use_cache": "no"}, "use_cache='no' must be True or False"),
    "stop_on_eos a word": ({"stop_on_eos": "yes"}, "stop_on_eos='yes' must be True or False"),
    "output_history a number": ({"output_history": 2}, "output_history=2 must be True or False"),
    "return_dict_in_generate a word": ({"return_dict_in_generate": "dict"}, "return_dict_in_generate='dict'"),
    "use_cache=False without a grid": (
        {"use_cache": False, "method": "ordered"},
        "use_cache=False evaluates the empty steps",
    ),
    "stop_on_eos without an EOS": ({"stop_on_eos": True}, "stop_on_eos=True needs eos_token_id"),
    "use_cache a number": ({"use_cache": 0}, "use_cache=0 must be True or False"),
    "temperature too small to divide by": ({"temperature": 1e-42}, "temperature=1e-42"),
    "a dictionary with an unknown setting": ({"generation_config": {"stepz": 4}}, "stepz"),
    "a dictionary with a bad setting": ({"generation_config": {"steps": 0}}, "steps=0"),
    "padding with the mask": (
        {"stop_on_eos": True, "generation_config": RaddGenerationConfig(eos_token_id=1, pad_token_id=M)},
        "pad_token_id=299 must be an id below 300 and not the mask's",
    ),
    "padding beyond the vocabulary": (
        {"stop_on_eos": True, "generation_config": RaddGenerationConfig(eos_token_id=1, pad_token_id=999)},
        "pad_token_id=999",
    ),
    "an EOS beyond the vocabulary": (
        {"stop_on_eos": True, "generation_config": RaddGenerationConfig(eos_token_id=[1, V])},
        "eos_token_id=300",
    ),
    "an EOS that is none": ({"stop_on_eos": True, "eos_token_id": True}, "eos_token_id=True must be an id below 300"),
    "a fractional EOS": ({"stop_on_eos": True, "eos_token_id": 1.0}, "eos_token_id=1.0 must be an id"),
    "an EOS of text": ({"stop_on_eos": True, "eos_token_id": "12"}, "eos_token_id='12' must be an id"),
    "a negative EOS": ({"stop_on_eos": True, "eos_token_id": -1}, "eos_token_id=-1 must be an id"),
    "the mask as EOS": ({"stop_on_eos": True, "eos_token_id": [1, M]}, "eos_token_id=299 must be an id"),
    "EOS in rows": ({"stop_on_eos": True, "eos_token_id": [[1]]}, r"eos_token_id=\[1\] must be an id"),
    "an EOS beyond 64 bits": ({"stop_on_eos": True, "eos_token_id": 2**70}, "eos_token_id=1180591620717411303424"),
    "no EOS in a list": ({"stop_on_eos": True, "eos_token_id": []}, "stop_on_eos=True needs eos_token_id"),
    "no rows": ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, r"input_ids has shape \(0, 4\); it must have at l"),
    "no rows of a prefix": ({"prefix": np.zeros((0, 2), dtype=int)}, r"prefix has shape \(0, 2\); it must have at l"),
    "rows of no tokens": ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "input_ids has rows of lengths"),
    "attention_mask that is not a number": (
        {"input_ids": CANVAS, "attention_mask": [float("nan"), 1, 1, 1]},
        r"attention_mask holds nan at \(0, 0\)",
    ),
    "attention_mask of words": ({"input_ids": CANVAS, "attention_mask": "x"}, "attention_mask='x' must be a tensor"),
    "attention_mask of other numbers": (
        {"input_ids": CANVAS, "attention_mask": torch.tensor([[1, 1, 5, 1]])},
        r"attention_mask holds 5 at \(0, 2\); it must be 1 at text and 0 at padding",
    ),
    # orders
    "order of words": ({"method": "ordered", "order": ["a"] * L}, "order=.* must be a tensor, or lists of numbers"),
    "ragged order": ({"method": "ordered", "order": [[0, 1], [0]]}, "order=.* must be a tensor, or lists"),
    "order in a dictionary": ({"method": "ordered", "order": {1: 2}}, "order=.* must be a tensor"),
    "unknown order": ({"method": "ordered", "order": "sideways"}, "order='sideways' must be one of"),
    "order of another method": ({"order": "backward"}, "order='backward' is for method='ordered'"),
    "order too short": ({"method": "ordered", "order": [0, 1]}, r"order has shape \(2,\)"),
    "order for another batch": (
        {"method": "ordered", "order": torch.arange(L).repeat(3, 1)},
        r"order has shape \(3, 12\)",
    ),
    "order names a position twice": (
        {"method": "ordered", "order": [0] * L},
        "names position 0, twice; it must name each position 0 .. 11 exactly once",
    ),
    "order of a row names a position twice": (
        {"method": "ordered", "order": [list(range(L)), [5] * L], "num_return_sequences": 2},
        "names position 5, twice",
    ),
    "order with a position that is none": (
        {"method": "ordered", "order": [*range(L - 1), L]},
        "names position 12, which is none; it must name each position 0 .. 11",
    ),
    "order with a negative position": ({"method": "ordered", "order": range(-1, L - 1)}, "names position -1"),
    "order with True for one": ({"method": "ordered", "order": [0, True, *range(2, L)]}, "holds True or False beside"),
    "order beyond 64 bits": ({"method": "ordered", "order": [*range(L - 1), 2**70]}, "order=.* must be a tensor, or l"),
    "order a set": ({"method": "ordered", "order": set(range(L))}, "order=.* must be a tensor, or lists"),
    "order a number": ({"method": "ordered", "order": 3}, r"order has shape \(\)"),
    "order of nothing": ({"method": "ordered", "order": []}, r"order has shape \(0,\)"),
    "complex order": (
        {"method": "ordered", "order": torch.arange(L) + 0j},
        r"order has shape \(12,\) and dtype torch.c",
    ),
    "order begins at one": ({"method": "ordered", "order": list(range(1, L + 1))}, "must name each position"),
    "fractional order": ({"method": "ordered", "order": torch.rand(L)}, "order has shape"),
    # generators
    "too few generators": (
        {"generator": [seeded()], "num_return_sequences": 2},
        "generator is a list of 1; the batch has 2 rows",
    ),
    "too many generators": ({"generator": [seeded(), seeded()]}, "generator is a list of 2; the batch has 1 rows"),
}
BAD_TYPES = {
    "generator a seed": ({"generator": 42}, "generator=42 must be a torch.Generator"),
    "generators that are seeds": ({"generator": [42]}, "generator=42 must be a torch.Generator"),
    "ids of words and numbers": ({"prefix": [1, "two"]}, "prefix holds 'two'"),
    "fractional ids": ({"prefix": [1, 2.5]}, "prefix holds 2.5"),
    "ids in a dictionary": ({"prefix": {"input_ids": [1]}}, "prefix=.* must be ids"),
    "a number for a prefix": ({"prefix": 7}, "prefix=7 must be ids"),
    "what a tokenizer returns": (
        {"input_ids": {"input_ids": [[1]], "attention_mask": [[1]]}},
        "input_ids=.* must be ids or text: pass its input_ids, and attention_mask with them",
    ),
    "a tokenizer's name": ({"prefix": "a", "tokenizer": "gpt2"}, "tokenizer='gpt2' must be a tokenizer"),
    "a streamer that cannot put": ({"streamer": print}, "streamer=.* must have the methods put and end"),
    "a logits processor that is none": (
        {"logits_processor": ["top_k"]},
        "logits_processor=.* must be a LogitsProcessorList",
    ),
    "a bare function for a list of processors": ({"logits_processor": lambda _, s: s}, "logits_processor="),
    "the name of a generation config": ({"generation_config": "x"}, "generation_config='x' must be"),
}


@pytest.mark.called_only
@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [pytest.param(ValueError, *case, id=name) for name, case in BAD.items()]
    + [pytest.param(TypeError, *case, id=name) for name, case in BAD_TYPES.items()],
)
def test_bad_input_is_refused_by_name_before_any_evaluation(model, monkeypatch, error, arguments, message):
    monkeypatch.setattr(model.model, "forward", lambda **kwargs: pytest.fail("the network was evaluated"))
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    generator = seeded()
    with pytest.raises(error, match=message):
        model.generate(**{"generator": generator, **arguments})
    assert all(torch.equal(arguments[name], value) for name, value in before.items())
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda order: np.array(order, dtype=np.uint16),
        lambda order: torch.tensor(order, dtype=torch.uint8),
        lambda order: torch.tensor(order, dtype=torch.uint64),
        lambda order: torch.tensor(order, dtype=torch.int32),
        lambda order: [np.int64(position) for position in order],
        lambda order: [list(order)],
    ],
)
def test_an_order_may_be_written_in_any_kind_of_integers(model, kind):
    order = [3, 1, 0, 2, 5, 4, 11, 10, 6, 7, 9, 8]
    output = model.generate(method="ordered", order=kind(order), return_dict_in_generate=True, generator=seeded())
    assert output.reveal_step[0].argsort().tolist() == order


@pytest.mark.parametrize(
    ("large", "same"),
    [
        ({"top_k": 2**62}, {}),
        ({"refresh_interval": 2, "refresh_window": 2**62}, {"refresh_interval": 2, "refresh_window": L}),
        ({"refresh_interval": 2**62}, {"refresh_interval": L + 1}),
        ({"max_time": 1e300}, {}),
        ({"steps": np.int64(7)}, {"steps": 7}),
        ({"temperature": np.float32(0.5), "top_k": torch.tensor(9)}, {"temperature": 0.5, "top_k": 9}),
        ({"eos_token_id": np.array([3, 5]), "stop_on_eos": True}, {"eos_token_id": [3, 5], "stop_on_eos": True}),
    ],
)
def test_large_numbers_and_those_of_other_libraries_mean_what_they_say(model, large, same):
    assert torch.equal(model.generate(**large, seed=0), model.generate(**same, seed=0))


def test_a_million_steps_are_written_like_continuous_time(model):
    output = model.generate(steps=10**6, seed=0, return_dict_in_generate=True)
    assert output.num_function_evaluations.tolist() == [L]
    assert int(output.reveal_step.max()) < 10**6


def test_the_table_of_bad_input_is_long_enough():
    assert len(BAD) + len(BAD_TYPES) >= 60


@pytest.mark.parametrize("streamer", [TextStreamer, TextDiffusionStreamer])
def test_a_streamer_of_one_row_is_not_given_two(model, tiny_tokenizer, streamer):
    with pytest.raises(ValueError, match="prints one row; this batch has 2"):
        model.generate(num_return_sequences=2, streamer=streamer(tiny_tokenizer))


def test_a_streamer_that_would_skip_the_only_text_is_refused(model, tiny_tokenizer):
    with pytest.raises(ValueError, match="skip_prompt=True"):
        model.generate(streamer=TextStreamer(tiny_tokenizer, skip_prompt=True))


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"steps": 0}, {"method": "ancestral"}])
def test_a_generation_config_is_refused_like_the_keywords(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        RaddGenerationConfig(**setting)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("refresh_interval", [1, 3])
def test_a_processor_cannot_bring_the_mask_back(model, temperature, refresh_interval):
    settings = {"temperature": temperature, "refresh_interval": refresh_interval, "seed": 1}
    output = model.generate(
        logits_processor=[lambda _, scores: torch.zeros_like(scores)], return_dict_in_generate=True, **settings
    )
    assert not (output.sequences == model.config.mask_token_id).any()
    assert output.token_logprobs.isfinite().all()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_processor_that_leaves_no_token_is_reported(model, temperature, value):
    with pytest.raises(ValueError, match="logits_processor left a position without a finite score"):
        model.generate(temperature=temperature, logits_processor=[lambda _, scores: scores.fill_(value)])


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        lambda scores: scores > 0,  # True is a finite score, also that of the mask
        lambda scores: scores.nan_to_num(neginf=-9).long(),
        lambda scores: scores + 0j,
        lambda scores: scores.to("meta"),
        lambda scores: scores[:, :5],
        lambda scores: scores.numpy(),
        lambda scores: None,
    ],
)
def test_a_processor_that_returns_no_scores_is_reported(model, temperature, change):
    with pytest.raises(ValueError, match=r"logits_processor returned .*; it must return scores \("):
        model.generate(logits_processor=[lambda _, scores: change(scores)], temperature=temperature, seed=0)


def test_a_processor_that_works_in_place_does_not_change_the_log_probabilities(model):
    plain, doubled = (
        model.generate(
            temperature=0, logits_processor=processors, return_dict_in_generate=True, generator=seeded()
        ).token_logprobs
        for processors in (None, [lambda _, scores: scores.mul_(2)])
    )
    assert torch.equal(plain, doubled)


def test_a_model_without_settings_of_generation_can_still_be_configured():
    assert RaddForMaskedLM(
        RaddConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).generation_config
