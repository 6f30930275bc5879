# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Orders that the model chooses: which positions, how many, what they cost, and what is refused.

`test_generation_laws.py` holds their distributions against the enumerated ones.

Shapes: R rows, L length, V vocabulary (mask last), m masked positions of a row.
"""

import pytest
import torch
from transformers import LogitsProcessorList

from radd_hf import RaddGenerationConfig, generation_radd
from radd_hf.policy_radd import Beliefs, Policy, rank_with_ties
from support.samplers import sample_slowly_by_policy
from support.spies import Watch
from support.toys import FlatNetwork, TableNetwork, random_model, seeded

L, V = 12, 11
MASK = V - 1
SETTINGS = [
    {"order": "confidence"},
    {"order": "margin"},
    {"order": "entropy"},
    {"order": "confidence", "steps": 5},
    {"order": "entropy", "steps": 2},
    {"entropy_bound": 2.5},
    {"order": "margin", "entropy_bound": 4.0},
    {"confidence_threshold": 0.4},
    {"order": "entropy", "confidence_threshold": 0.6},
]
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=V, max_position_embeddings=L)


def canvas() -> torch.Tensor:
    """Three rows with different numbers of masks, the last without any."""
    ids = torch.randint(MASK, (3, L), generator=seeded(0))
    masked = torch.rand(3, L, generator=seeded(1)) < torch.tensor([[0.5], [0.9], [0.0]])
    return ids.masked_fill(masked, MASK)


def write(model, **arguments):
    defaults = {"method": "ordered", "generator": seeded(5), "return_dict_in_generate": True}
    return model.generate(**defaults | arguments)


# ---------------------------------------------------------------------------------------------------------
# Which positions, and how many
# ---------------------------------------------------------------------------------------------------------


@each_setting
def test_an_adaptive_order_writes_what_its_definition_says(model, settings):
    ids, uniform = canvas(), torch.rand(3, L, generator=seeded(5), dtype=torch.float64)
    text, reveal_step = sample_slowly_by_policy(model, ids, settings, uniform)
    out = write(model, input_ids=ids, **settings)
    assert torch.equal(out.sequences, text)
    assert torch.equal(out.reveal_step, reveal_step)
    assert torch.equal(out.num_function_evaluations, reveal_step.amax(dim=1) + 1)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_ties_go_to_the_left(order):
    out = write(FlatNetwork(V, L), order=order, suffix=[1, 2], length=L)
    assert out.reveal_step[0].tolist() == [*range(L - 2), -1, -1]


def test_what_differs_by_rounding_is_a_tie_however_many_there_are():
    noise = torch.rand(1, 50, generator=seeded(2)) * 2e-6
    for certainty in torch.rand(40, generator=seeded(3)):
        assert rank_with_ties(certainty + noise).tolist() == [list(range(50))]
    certainty = torch.tensor([[0.5, 0.9, 0.9 + 4e-6, -torch.inf, 0.500002, 0.7]])
    assert rank_with_ties(certainty).tolist() == [[1, 2, 5, 0, 4, 3]]


@pytest.mark.parametrize(("steps", "groups"), [(5, [3, 2, 3, 2, 2]), (1, [12]), (12, [1] * 12), (40, [1] * 12)])
def test_fewer_steps_reveal_balanced_groups(model, steps, groups):
    out = write(model, length=L, order="margin", steps=steps)
    assert out.reveal_step[0].bincount().tolist() == groups


def test_below_a_threshold_only_the_best_position_is_revealed():
    policy = Policy("margin", confidence_threshold=0.5)
    masked = torch.ones(2, 3, dtype=torch.bool)
    margin, top = torch.tensor([[0.1, 0.3, 0.2]] * 2), torch.tensor([[0.6, 0.4, 0.4], [0.4, 0.4, 0.4]])
    chosen = policy.choose(Beliefs(margin, margin, top), masked)
    assert chosen.tolist() == [[True, False, False], [False, True, False]]


def test_an_entropy_bound_of_0_reveals_one_position_at_a_time(model):
    one = write(model, length=L, order="entropy")
    assert torch.equal(write(model, length=L, entropy_bound=0).sequences, one.sequences)


def test_a_large_bound_and_a_low_threshold_reveal_all_at_once(model):
    for settings in ({"entropy_bound": 1e6}, {"confidence_threshold": 1e-9}):
        assert write(model, length=L, **settings).num_function_evaluations.tolist() == [1]


def test_a_larger_bound_takes_no_more_evaluations(model):
    evaluations = [
        int(write(model, length=L, entropy_bound=bound, temperature=0).num_function_evaluations)
        for bound in (0, 1, 3, 10, 100)
    ]
    assert evaluations == sorted(evaluations, reverse=True)
    assert len(set(evaluations)) > 2


# ---------------------------------------------------------------------------------------------------------
# With the other arguments
# ---------------------------------------------------------------------------------------------------------


@each_setting
def test_a_row_does_not_depend_on_its_batch(model, settings):
    ids = canvas()[:2]
    together = write(model, input_ids=ids, generator=[seeded(7), seeded(8)], **settings)
    for row, seed in enumerate((7, 8)):
        alone = write(model, input_ids=ids[row : row + 1], generator=[seeded(seed)], **settings)
        for name in ("sequences", "reveal_step", "num_function_evaluations"):
            assert torch.equal(together[name][row], alone[name][0])


@each_setting
def test_a_padded_row_is_written_as_the_row_alone(model, settings):
    row = torch.tensor([[MASK, 4, MASK, MASK, 2, MASK]])
    alone = write(model, input_ids=row, generator=[seeded(3)], **settings)
    for left in (True, False):
        padding = torch.zeros(1, 5, dtype=torch.long)
        ids = torch.cat([padding, row] if left else [row, padding], dim=1)
        seen = torch.cat([padding, torch.ones_like(row)] if left else [torch.ones_like(row), padding], dim=1)
        out = write(model, input_ids=ids, attention_mask=seen, generator=[seeded(3)], **settings)
        assert torch.equal(out.sequences[seen.bool()], alone.sequences[0])
        assert torch.equal(out.reveal_step[seen.bool()], alone.reveal_step[0])


@each_setting
def test_the_history_shows_each_event_and_the_streamer_too(model, settings):
    drafts = []

    class Recorder:
        def put_draft(self, ids):
            drafts.append(ids)

        def put(self, ids):
            drafts.append(ids)

        def end(self):
            drafts.append(None)

    out = write(model, input_ids=canvas(), output_history=True, streamer=Recorder(), **settings)
    events = int(out.num_function_evaluations.max())
    assert len(out.history) == events + 1
    assert len(drafts) == events + 2
    for event, ids in enumerate(out.history):
        expected = out.sequences.masked_fill(out.reveal_step >= event, MASK)
        assert torch.equal(ids, expected)


@each_setting
def test_the_logprobs_are_those_of_the_tokens_when_they_were_drawn(model, settings):
    out = write(model, input_ids=canvas(), output_history=True, **settings)
    for event, ids in enumerate(out.history[:-1]):
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits.log_softmax(dim=-1)
        drawn = out.reveal_step == event
        expected = logprobs.gather(2, out.sequences[..., None]).squeeze(2)[drawn]
        torch.testing.assert_close(out.token_logprobs[drawn], expected, atol=1e-4, rtol=1e-4)


@each_setting
def test_a_text_ends_at_its_first_eos(model, settings):
    free = write(model, input_ids=canvas(), **settings)
    eos = int(free.sequences[1][free.reveal_step[1] >= 0][0])
    out = write(model, input_ids=canvas(), stop_on_eos=True, eos_token_id=eos, pad_token_id=0, **settings)
    assert not (out.sequences == MASK).any()
    assert bool((out.num_function_evaluations <= free.num_function_evaluations).all())
    for row in range(3):
        generated = (canvas()[row] == MASK).nonzero().flatten()
        ends = [
            int(place) for place in generated if out.sequences[row, place] == eos and out.reveal_step[row, place] >= 0
        ]
        if ends:
            after = generated[generated > ends[0]]
            assert (out.sequences[row, after] == 0).all()
            assert (out.reveal_step[row, after] == -1).all()


@each_setting
def test_when_time_has_run_out_one_event_draws_the_rest(model, settings, monkeypatch):
    events = int(write(model, length=L, num_return_sequences=2, **settings).num_function_evaluations[0])
    clock = iter([0.0, 0.0, 0.0, *[100.0] * 50])
    monkeypatch.setattr(generation_radd.time, "monotonic", lambda: next(clock))
    out = write(model, length=L, num_return_sequences=2, max_time=1.0, **settings)
    assert not (out.sequences == MASK).any()
    assert out.num_function_evaluations.tolist() == [min(events, 3)] * 2
    assert out.reveal_step.amax(dim=1).tolist() == [min(events, 3) - 1] * 2


def test_temperature_0_and_a_seed_repeat_a_text(model):
    texts = [model.generate(length=L, method="ordered", order="entropy", temperature=0) for _ in range(2)]
    assert torch.equal(*texts)
    seeded_texts = [model.generate(length=L, method="ordered", order="entropy", seed=3) for _ in range(2)]
    assert torch.equal(*seeded_texts)


def test_the_policy_looks_after_the_processors_and_before_the_warpers(model):
    def forbid(ids, scores):
        scores[:, :5] = -torch.inf
        return scores

    seen = []

    def leftmost(scores, positions):
        seen.append(scores)
        return [0]

    write(model, length=L, order=leftmost, top_k=1, temperature=0.1, logits_processor=LogitsProcessorList([forbid]))
    for scores in seen:
        assert scores.dtype == torch.float32
        assert (scores[:, [*range(5), MASK]] == torch.finfo(torch.float32).min).all()
        assert (scores[:, 5:MASK].abs() < 100).all()


def test_no_logits_are_kept_beyond_a_chunk(model, monkeypatch):
    rows, chunk = 4, 2 * V
    monkeypatch.setattr(generation_radd, "MAX_DRAW_ELEMENTS", chunk)
    big = random_model(vocab_size=2000, max_position_embeddings=L)
    monkeypatch.setattr(generation_radd, "MAX_DRAW_ELEMENTS", 3 * 2000)
    with Watch() as watch:
        big.generate(length=L, method="ordered", order="confidence", num_return_sequences=rows)
    weights = big.lm_head.weight.numel()
    assert watch.largest <= max(weights, 3 * 2000 * 4) < rows * L * 2000


# ---------------------------------------------------------------------------------------------------------
# A user's own policy
# ---------------------------------------------------------------------------------------------------------


def test_a_function_gets_scores_and_positions_of_a_rows_masks(model):
    ids, seen = canvas(), []

    def last(scores, positions):
        seen.append((scores.shape, positions.tolist()))
        return [-1]

    out = write(model, input_ids=ids, order=last)
    masks = [(row == MASK).nonzero().flatten().tolist() for row in ids]
    assert seen[:2] == [((len(masks[1]), V), masks[1]), ((len(masks[0]), V), masks[0])]
    backward = write(model, input_ids=ids, order="backward")
    assert torch.equal(out.sequences, backward.sequences)
    assert torch.equal(out.reveal_step, backward.reveal_step)


def test_positions_are_counted_without_padding(model):
    row, seen = torch.tensor([[4, MASK, 2, MASK]]), []

    def policy(scores, positions):
        seen.append(positions.tolist())
        return 0

    padding = torch.zeros(1, 3, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(row)], dim=1)
    write(model, input_ids=torch.cat([padding, row], dim=1), attention_mask=mask, order=policy)
    assert seen == [[1, 3], [3]]


def test_the_entropy_of_scores_is_a_number_and_gives_the_order_of_that_name(model):
    def least_entropy(scores, positions):
        logprobs = scores.log_softmax(dim=1)
        return (logprobs.exp() * logprobs).sum(dim=1).argmax()

    given = {"input_ids": canvas()[:2]}
    assert torch.equal(
        write(model, order=least_entropy, **given).reveal_step, write(model, order="entropy", **given).reveal_step
    )


def test_a_function_is_shown_by_a_configuration_and_not_saved(tmp_path):
    config = RaddGenerationConfig(method="ordered", order=max)
    assert "built-in function max" in repr(config)
    with pytest.raises(ValueError, match=r"order=<built-in function max> is a function, which cannot be saved"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_function_may_write_block_by_block(model):
    def in_blocks_of_4(scores, positions):
        block = positions // 4 == positions[0] // 4
        top = scores.softmax(dim=1).amax(dim=1).where(block, -1)
        return [int(top.argmax())]

    out = write(model, length=L, order=in_blocks_of_4)
    assert (out.reveal_step[0] // 4).tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    "answer", [[], [99], 99, 0.5, torch.zeros(3, 2), torch.zeros(L, dtype=torch.bool), None, "left", [[0]]], ids=str
)
def test_an_answer_that_is_no_choice_is_refused(model, answer):
    with pytest.raises(ValueError, match=r"order=.*(must|chose no position)"):
        write(model, length=L, order=lambda scores, positions: answer)


# ---------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "tweedie", "order": "confidence"}, "order='confidence' is for method='ordered'"),
        ({"method": "first_hitting", "entropy_bound": 0.1}, "entropy_bound=0.1 is for method='ordered'"),
        ({"order": "forward", "entropy_bound": 0.1}, "order='confidence', 'margin' or 'entropy'"),
        ({"order": [0, 1, 2], "confidence_threshold": 0.5}, "order='confidence', 'margin' or 'entropy'"),
        ({"entropy_bound": 0.1, "confidence_threshold": 0.5}, "pass one of them"),
        ({"entropy_bound": 0.1, "steps": 4}, "pass one of them"),
        ({"entropy_bound": -0.1}, "entropy_bound=-0.1 must be"),
        ({"entropy_bound": float("nan")}, "entropy_bound=nan must be"),
        ({"confidence_threshold": 0}, "confidence_threshold=0 must be"),
        ({"confidence_threshold": 1.5}, "confidence_threshold=1.5 must be"),
        ({"order": "confident"}, "order='confident' must be one of"),
        ({"order": "confidence", "refresh_interval": 4}, "refresh_interval=4"),
        ({"order": lambda scores, positions: [0], "steps": 4}, "steps=4"),
        ({"order": lambda scores, positions: [0], "entropy_bound": 0.4}, "order='confidence', 'margin' or 'entropy'"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_does_not_go_together_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        write(model, length=L, **arguments)


def test_a_bound_takes_the_place_of_a_saved_order_and_a_named_order_that_of_a_saved_bound():
    network = TableNetwork(4, 3)
    network.generation_config = RaddGenerationConfig(method="ordered", order="backward", steps=2)
    assert write(network, length=3, entropy_bound=1e6).num_function_evaluations.tolist() == [1]
    network.generation_config = RaddGenerationConfig(method="ordered", entropy_bound=1e6)
    assert write(network, length=3).num_function_evaluations.tolist() == [1]
    assert write(network, length=3, order="forward").reveal_step.tolist() == [[0, 1, 2]]
    assert write(network, length=3, steps=2).num_function_evaluations.tolist() == [2]
    assert write(network, length=3, method="first_hitting").num_function_evaluations.tolist() == [3]


def test_an_order_or_a_bound_alone_means_ordered(model):
    for settings in ({"order": "confidence"}, {"entropy_bound": 0.5}, {"order": "backward"}):
        expected = write(model, length=L, **settings)
        for config in (settings, RaddGenerationConfig(**settings)):
            found = model.generate(length=L, generation_config=config, seed=None, generator=seeded(5))
            assert torch.equal(found, expected.sequences)
        assert torch.equal(model.generate(length=L, generator=seeded(5), **settings), expected.sequences)


def test_a_bound_alone_means_its_own_order():
    assert RaddGenerationConfig.resolve({"method": "ordered", "entropy_bound": 0.1}).order == "entropy"
    assert RaddGenerationConfig.resolve({"method": "ordered", "confidence_threshold": 0.1}).order == "confidence"
    assert RaddGenerationConfig.resolve({"entropy_bound": 0.1, "order": "margin"}).order == "margin"
    assert RaddGenerationConfig.resolve({"entropy_bound": 0.1}, {"order": "margin"}).order == "margin"
