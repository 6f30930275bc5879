# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Several tokens from one evaluation: the distribution stays that of one token an evaluation, and so do all features.

`test_generation_laws.py` has the laws of texts of three tokens. Here texts are longer, so that rounds check several
drafts.

Shapes: R rows, L length, V vocabulary (mask last).
"""

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from radd_hf import RaddGenerationConfig, generation_radd
from radd_hf.draw_radd import draw_tokens
from radd_hf.likelihood import exact_likelihood
from radd_hf.plan_radd import Schedule
from radd_hf.speculation_radd import count_leading, is_accepted, residual, speculation_of, with_drafts
from support.laws import ACCEPTED, REFUSED, goodness_of_fit
from support.toys import FlatNetwork, TableNetwork, random_model, seeded

V, M, L = 3, 2, 5  # tokens 0 and 1, and the mask
ORDERS = {"forward": "forward", "ids": [3, 0, 4, 2, 1], "random": "random"}
each_order = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


@functools.cache
def network() -> TableNetwork:
    return TableNetwork(V, L, scale=1.5)


@functools.cache
def logits_at(canvas: tuple[int, ...]) -> list[list[float]]:
    return network().logits(torch.tensor([canvas]))[0].tolist()


def law_in(order: tuple[int, ...], canvas: tuple[int, ...], temperature: float) -> dict[tuple[int, ...], float]:
    """P(text) by the chain rule, one token after the other."""
    law = {canvas: 1.0}
    for position in (each for each in order if canvas[each] == M):
        after: dict[tuple[int, ...], float] = {}
        for before, p in law.items():
            weights = [math.exp(x / temperature) for x in logits_at(before)[position][:M]]
            for token, weight in enumerate(weights):
                after[(*before[:position], token, *before[position + 1 :])] = p * weight / sum(weights)
        law = after
    return law


def p_value(order, k: int, canvas=(M,) * L, temperature: float = 1.0, samples: int = 20_000) -> float:
    """Of samples with speculation, under the law without it."""
    orders = list(itertools.permutations(range(L))) if order == "random" else [order]
    orders = [tuple(range(L)) if each == "forward" else tuple(each) for each in orders]
    law: dict[tuple[int, ...], float] = {}
    for each in orders:
        for text, p in law_in(each, canvas, temperature).items():
            law[text] = law.get(text, 0.0) + p / len(orders)
    text = network().generate(
        list(canvas),
        method="ordered",
        order=order,
        speculate=k,
        temperature=temperature,
        num_return_sequences=samples,
        generator=seeded(k),
    )
    return goodness_of_fit(text, law)


# ---------------------------------------------------------------------------------------------------------
# The law
# ---------------------------------------------------------------------------------------------------------


@each_order
@pytest.mark.parametrize("k", [2, 3, 4, 64])
def test_speculation_samples_the_law_of_one_token_an_evaluation(order, k):
    assert p_value(order, k) > ACCEPTED


@each_order
def test_speculation_keeps_the_law_given_some_tokens(order):
    assert p_value(order, 3, canvas=(M, 1, M, M, M)) > ACCEPTED


def test_speculation_keeps_the_law_under_a_temperature():
    assert p_value("forward", 4, temperature=0.6) > ACCEPTED


def accept_by_the_flipped_ratio(monkeypatch):
    monkeypatch.setattr(generation_radd, "is_accepted", lambda target, draft, u: is_accepted(draft, target, u))


def accept_every_draft(monkeypatch):
    monkeypatch.setattr(generation_radd, "is_accepted", lambda target, draft, u: torch.ones_like(target).bool())


def replace_by_a_draw_from_the_target(monkeypatch):
    monkeypatch.setattr(generation_radd, "residual", lambda target, draft: target)


def replace_by_a_draw_from_the_wrong_side(monkeypatch):
    monkeypatch.setattr(generation_radd, "residual", lambda target, draft: residual(draft, target))


def accept_drafts_after_a_rejection(monkeypatch):
    monkeypatch.setattr(generation_radd, "count_leading", lambda accepted: accepted.sum(dim=1))


def check_drafts_without_those_before(monkeypatch):
    def without(canvas, positions, drafts):
        return canvas[:, None].repeat(1, drafts.shape[1] + 1, 1)

    monkeypatch.setattr(generation_radd, "with_drafts", without)


def accept_by_the_number_that_drew_the_draft(monkeypatch):
    class Careless(generation_radd.Drafts):
        def __init__(self, tensors, number, draw, accept):
            super().__init__(tensors, number, draw, draw)

    monkeypatch.setattr(generation_radd, "Drafts", Careless)


ERRORS = [
    accept_by_the_flipped_ratio,
    accept_every_draft,
    replace_by_a_draw_from_the_target,
    replace_by_a_draw_from_the_wrong_side,
    accept_drafts_after_a_rejection,
    check_drafts_without_those_before,
    accept_by_the_number_that_drew_the_draft,
]


@pytest.mark.called_only
@pytest.mark.parametrize("plant", ERRORS, ids=lambda plant: plant.__name__)
def test_a_planted_error_of_the_rule_is_refused(monkeypatch, plant):
    plant(monkeypatch)
    assert p_value("forward", 4) < REFUSED


# ---------------------------------------------------------------------------------------------------------
# The rule
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.called_only
def test_a_draft_that_is_accepted_or_replaced_has_the_distribution_of_the_target():
    target, draft = (torch.randn(7, generator=seeded(seed)).mul(2).log_softmax(dim=0) for seed in (0, 1))
    target[2], draft[5] = -torch.inf, -torch.inf
    target, draft = target.log_softmax(dim=0), draft.log_softmax(dim=0)
    rows = 100_000
    u = torch.rand(3, rows, generator=seeded(2), dtype=torch.float64)
    drafts, _ = draw_tokens(draft.expand(rows, -1), u[0])
    replaced, _ = draw_tokens(residual(target[None], draft[None]).expand(rows, -1), u[1])
    written = torch.where(is_accepted(target[drafts], draft[drafts], u[2]), drafts, replaced)
    law = {(token,): float(p) for token, p in enumerate(target.double().exp())}
    assert goodness_of_fit(written[:, None], law) > ACCEPTED


@pytest.mark.called_only
def test_where_both_distributions_are_one_a_replacement_comes_from_it():
    target = torch.randn(2, 9, generator=seeded(3)).log_softmax(dim=1)
    assert torch.equal(residual(target, target), target)


@pytest.mark.called_only
def test_drafts_count_up_to_the_first_rejection():
    accepted = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert count_leading(accepted).tolist() == [2, 0, 4, 0]


@pytest.mark.called_only
def test_each_sequence_of_a_round_has_one_more_draft():
    canvas = torch.tensor([[7, 9, 9, 9], [9, 9, 7, 7]])
    positions, drafts = torch.tensor([[3, 1], [0, 4]]), torch.tensor([[5, 6], [4, 3]])  # 4: nowhere
    assert with_drafts(canvas, positions, drafts).tolist() == [
        [[7, 9, 9, 9], [7, 9, 9, 5], [7, 6, 9, 5]],
        [[9, 9, 7, 7], [4, 9, 7, 7], [4, 9, 7, 7]],
    ]


# ---------------------------------------------------------------------------------------------------------
# What it costs, and what it reports
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.called_only
@pytest.mark.parametrize(("k", "evaluations"), [(1, 16), (2, 9), (4, 5), (7, 4), (16, 2), (64, 2)])
def test_where_tokens_are_independent_every_draft_is_accepted(k, evaluations):
    out = FlatNetwork(5, 16).generate(method="first_hitting", speculate=k, return_dict_in_generate=True)
    assert out.num_function_evaluations.tolist() == [evaluations]
    assert out.num_sequences_evaluated.tolist() == [16]


@pytest.mark.called_only
def test_a_row_reports_the_sequences_that_were_computed_for_it():
    net = TableNetwork(4, 6, scale=3.0)
    canvas = torch.tensor([[3] * 6, [1, 3, 3, 3, 1, 1], [0] * 6, [0, 0, 0, 0, 0, 3]])
    out = net.generate(canvas, method="first_hitting", speculate=3, seed=0, return_dict_in_generate=True)
    assert out.num_sequences_evaluated.sum() == sum(net.rows_evaluated)
    assert out.num_function_evaluations.max() == len(net.rows_evaluated)
    assert out.num_function_evaluations.tolist()[2:] == [0, 1]
    assert out.num_sequences_evaluated.tolist()[2:] == [0, 1]


@pytest.mark.called_only
@pytest.mark.parametrize("settings", [{}, {"method": "euler", "steps": 3}, {"method": "ordered"}], ids=str)
def test_without_speculation_an_evaluation_computes_one_sequence_a_row(settings):
    out = network().generate(**settings, return_dict_in_generate=True)
    assert torch.equal(out.num_sequences_evaluated, out.num_function_evaluations)


# ---------------------------------------------------------------------------------------------------------
# The features of `generate`
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return random_model(vocab_size=40, max_position_embeddings=12)


@pytest.mark.parametrize("order", ["forward", "backward", "random"])
@pytest.mark.parametrize("warp", [{}, {"top_k": 3}], ids=str)
def test_at_temperature_0_the_text_is_that_without_speculation(model, order, warp):
    settings = {"method": "ordered", "order": order, "temperature": 0, "num_return_sequences": 8, "seed": 1, **warp}
    expected = model.generate(**settings)
    for k in (2, 5, 12):
        assert torch.equal(model.generate(speculate=k, **settings), expected)


def test_the_order_and_the_first_token_are_those_without_speculation(model):
    plain, fast = (
        model.generate(
            method="first_hitting", speculate=k, num_return_sequences=5, seed=2, return_dict_in_generate=True
        )
        for k in (1, 4)
    )
    assert torch.equal(plain.reveal_step, fast.reveal_step)
    first = plain.reveal_step == 0
    assert torch.equal(plain.sequences[first], fast.sequences[first])


def test_log_probabilities_of_a_text_sum_to_its_likelihood_in_its_order(model):
    out = model.generate(
        method="ordered", order="random", speculate=5, top_k=7, temperature=2.0, seed=3, return_dict_in_generate=True
    )
    nats = exact_likelihood(model, [out.sequences[0]], out.reveal_step[0].argsort())
    torch.testing.assert_close(-out.token_logprobs.sum(dim=1).double(), nats, rtol=1e-5, atol=1e-4)


def test_history_shows_the_canvas_after_every_round(model):
    out = model.generate(
        method="ordered", speculate=4, seed=4, output_history=True, return_dict_in_generate=True, num_return_sequences=3
    )
    masks = (torch.stack(out.history) == 39).sum(dim=2)  # (E + 1, R)
    written = -masks.diff(dim=0)  # (E, R)
    assert ((written >= 0) & (written <= 4)).all()
    assert torch.equal((written > 0).sum(dim=0), out.num_function_evaluations)


def prefer(canvases: Tensor, scores: Tensor) -> Tensor:
    """Adds a number that depends on the whole canvas and on the token."""
    place = 5 ** torch.arange(canvases.shape[1]) % 97
    codes = (canvases * place).sum(dim=1, keepdim=True)  # (n, 1)
    return scores + 3 * torch.sin(codes * (1 + torch.arange(scores.shape[1])).float())


def test_a_logits_processor_sees_the_canvas_that_each_distribution_belongs_to():
    class Inside(TableNetwork):
        def logits(self, canvas: Tensor) -> Tensor:
            logits = super().logits(canvas)
            return torch.stack([prefer(canvas, each) for each in logits.unbind(dim=1)], dim=1)

    settings = {"method": "first_hitting", "speculate": 4, "num_return_sequences": 500, "seed": 5}
    expected = Inside(4, 6).generate(**settings)
    assert torch.equal(TableNetwork(4, 6).generate(logits_processor=[prefer], **settings), expected)
    assert not torch.equal(TableNetwork(4, 6).generate(**settings), expected)


@pytest.mark.called_only
def test_chunked_logits_write_the_same_tokens(model, monkeypatch):
    settings = {"method": "first_hitting", "speculate": 4, "num_return_sequences": 5, "seed": 6}
    expected = model.generate(**settings)
    monkeypatch.setattr(generation_radd, "MAX_DRAW_ELEMENTS", 3 * 40)
    assert torch.equal(model.generate(**settings), expected)


@pytest.mark.parametrize("order", ["forward", "random"])
def test_stop_on_eos_writes_the_same_text_up_to_its_end(model, order):
    settings = {"method": "ordered", "order": order, "speculate": 4, "num_return_sequences": 20, "seed": 7}
    whole = model.generate(**settings)
    eos = whole[0, 5].item()
    out = model.generate(stop_on_eos=True, eos_token_id=eos, pad_token_id=3, return_dict_in_generate=True, **settings)
    ends = (whole == eos).long()
    padded = ends.cumsum(dim=1) - ends > 0  # (R, L) after the first EOS
    assert torch.equal(out.sequences, whole.masked_fill(padded, 3))
    assert torch.equal(out.reveal_step == -1, padded)
    assert (out.num_function_evaluations >= 1).all()


@pytest.mark.called_only
def test_time_that_runs_out_fills_what_is_masked_in_one_evaluation(model, monkeypatch):
    clock = iter([0.0] * 3 + [10.0] * 9)
    monkeypatch.setattr(generation_radd, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    out = model.generate(
        method="ordered", order="backward", speculate=3, max_time=5.0, seed=8, return_dict_in_generate=True
    )
    assert out.num_function_evaluations.tolist() == [3]
    assert out.num_sequences_evaluated.tolist() == [1 + 3 + 1]
    steps = out.reveal_step[0].flip(0).tolist()
    late = steps[-1]  # the place of the first token that was still masked
    assert steps == [min(place, late) for place in range(12)]
    assert not (out.sequences == 39).any()


# ---------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.called_only
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"method": "tweedie"}, "does not fit method='tweedie'"),
        ({"method": "euler"}, "does not fit method='euler'"),
        ({}, "does not fit method='tweedie'"),
        ({"method": "ordered", "steps": 3}, "does not fit steps=3"),
        ({"method": "ordered", "order": "confidence"}, "does not fit order='confidence'"),
        ({"method": "ordered", "entropy_bound": 0.1}, "does not fit order='entropy'"),
        ({"method": "first_hitting", "refresh_interval": 4}, "does not fit refresh_interval=4"),
    ],
    ids=str,
)
def test_speculation_names_what_it_does_not_go_together_with(settings, named):
    net = FlatNetwork(5, 6)
    with pytest.raises(ValueError, match=f"speculate=4 {named}"):
        net.generate(speculate=4, **settings)
    assert not net.rows_evaluated


@pytest.mark.called_only
@pytest.mark.parametrize("value", [0, -1, 65, 2.0, True, "4"])
def test_a_number_of_sequences_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"speculate=.* must be an integer of at least 1 and at most 64"):
        FlatNetwork(5, 6).generate(method="first_hitting", speculate=value)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "tweedie", "steps": 4},
        {"method": "ordered", "steps": 3},
        {"method": "ordered", "order": "margin"},
        {"method": "first_hitting", "refresh_interval": 2},
    ],
    ids=str,
)
def test_a_saved_speculation_is_for_the_calls_that_it_fits(model, settings):
    expected = model.generate(seed=9, **settings)
    model.generation_config = RaddGenerationConfig(method="first_hitting", speculate=4)
    assert torch.equal(model.generate(seed=9, **settings), expected)
    assert model.generate(return_dict_in_generate=True, seed=9).num_function_evaluations < 12


@pytest.mark.called_only
def test_speculation_asked_for_in_a_call_takes_the_place_of_saved_steps():
    net = FlatNetwork(5, 16)
    net.generation_config = RaddGenerationConfig(method="ordered", steps=3)
    out = net.generate(speculate=5, return_dict_in_generate=True)
    assert out.num_function_evaluations.tolist() == [4]
    assert speculation_of(RaddGenerationConfig.resolve({"method": "ordered", "steps": 3}, {"speculate": 5})) == 1


# ---------------------------------------------------------------------------------------------------------
# On a GPU
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("replayed")
@pytest.mark.called_only
def test_the_host_does_not_wait_for_rounds_that_there_will_be_in_any_case(model, monkeypatch):
    """Sixteen tokens are one and fifteen: with up to four a round, four more rounds at least."""
    questions, follow = [], Schedule.follow

    def watched(schedule, *progress):
        questions.append(schedule.current)
        return follow(schedule, *progress)

    monkeypatch.setattr(Schedule, "follow", watched)
    settings = {"length": 16, "method": "first_hitting", "speculate": 4, "seed": 10, "return_dict_in_generate": True}
    expected, found = (model.generate(cuda_graphs=graphs, **settings) for graphs in (False, True))
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.num_function_evaluations, expected.num_function_evaluations)
    rounds = int(expected.num_function_evaluations)
    assert questions[:rounds] == list(range(1, rounds + 1)), "a processor need not wait"
    assert questions[rounds] == 5
    assert questions[-1] == rounds
