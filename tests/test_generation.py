"""The interface of generate(): what each argument does, and which source of a setting wins."""

import time

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TextDiffusionStreamer, TextStreamer
from transformers.generation import MinPLogitsWarper

from radd_hf import RaddForMaskedLM, RaddGenerateOutput, RaddGenerationConfig
from radd_hf.generation_radd import BOUNDS, LENGTHS
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


PLANS = [
    {"length": 7, "method": "euler", "order": [0, 1], "entropy_bound": 0.5},
    {"max_new_tokens": 7, "method": "ordered", "order": "margin", "confidence_threshold": 0.5},
    {"length": 7, "method": "ordered", "order": "random", "schedule": "profile"},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_generation_config_survives_saving_with_every_setting(model, tmp_path, plan):
    settings = plan | {
        "steps": 3,
        "information_profile": [2.5, 1.0],
        "speculate": 4,
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
        "exact": False,
    }
    assert {*settings, *LENGTHS, *BOUNDS, "schedule"} == set(RaddGenerationConfig.DEFAULTS)
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
