# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The draw of a token keeps the tail, and log-probabilities sum to the likelihood of the text.

Shapes: R rows, L length, V vocabulary (mask last), m masked positions of a row, n steps of the grid.
"""

import pytest
import torch
from scipy import stats

from radd_hf.draw_radd import draw_tokens
from support.laws import ACCEPTED, GIVEN, REFUSED, longer_model
from support.toys import seeded

# ---------------------------------------------------------------------------------------------------------
# The token draw
# ---------------------------------------------------------------------------------------------------------


RARE_TOKENS, RARE_PROBABILITY, FREQUENT_TOKENS = 49_990, 2e-8, 10
RARE_SHARE = RARE_TOKENS * RARE_PROBABILITY  # 0.1 %
FREQUENT_PROBABILITY = (1 - RARE_SHARE) / FREQUENT_TOKENS
TAIL_DRAWS = 30_000


def tail_p_value(rare: int) -> float:
    """Binomial p-value of the number of rare tokens among TAIL_DRAWS."""
    return float(stats.binomtest(rare, TAIL_DRAWS, RARE_SHARE).pvalue)


@pytest.mark.called_only
def test_the_token_draw_keeps_the_tail():
    generator = seeded(12)
    frequent = torch.randperm(RARE_TOKENS + FREQUENT_TOKENS, generator=generator)[:FREQUENT_TOKENS]
    probability = torch.full((RARE_TOKENS + FREQUENT_TOKENS,), RARE_PROBABILITY)  # (V,)
    probability[frequent] = FREQUENT_PROBABILITY
    scores, rare, chunk = probability.log(), 0, 20
    for _ in range(TAIL_DRAWS // chunk):
        uniform = torch.rand(chunk, generator=generator, dtype=torch.float64)
        tokens, _ = draw_tokens(scores.expand(chunk, -1), uniform)  # (chunk,)
        rare += int((~torch.isin(tokens, frequent)).sum())
    assert tail_p_value(rare) > ACCEPTED


@pytest.mark.called_only
@pytest.mark.parametrize("race", ["gumbel", "exponential"])
def test_a_race_of_24_bit_uniforms_loses_the_tail(race):
    generator = seeded(13)
    frequent = torch.rand(TAIL_DRAWS, FREQUENT_TOKENS, generator=generator)  # float32: multiples of 2^-24
    # Rare tokens are alike, so the best of them has the largest uniform: the maximum of RARE_TOKENS multiples of
    # 2^-24, whose distribution function at j 2^-24 is ((j + 1) 2^-24)^RARE_TOKENS, is drawn by inversion.
    uniform = torch.rand(TAIL_DRAWS, 1, generator=generator, dtype=torch.float64)
    best_rare = (((uniform ** (1 / RARE_TOKENS)) * 2**24).ceil() - 1).clamp(min=0).float() / 2**24
    best = torch.cat([frequent, best_rare], dim=1)  # (draws, 11)
    probability = torch.tensor([FREQUENT_PROBABILITY] * FREQUENT_TOKENS + [RARE_PROBABILITY])
    if race == "gumbel":
        winner = (probability.log() - (-best.log()).log()).argmax(dim=1)
    else:
        winner = (probability / -best.log()).argmax(dim=1)
    rare = int((winner == FREQUENT_TOKENS).sum())
    assert tail_p_value(rare) < REFUSED
    assert rare < TAIL_DRAWS * RARE_SHARE / 3  # about a sixth of what is right


def test_an_impossible_token_is_never_drawn_even_at_the_ends_of_the_uniform():
    scores = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf])
    uniform = torch.cat(
        [torch.tensor([0.0, 1 - 2**-53]).double(), torch.rand(1000, generator=seeded(14), dtype=torch.float64)]
    )
    tokens, _ = draw_tokens(scores.expand(len(uniform), -1), uniform)
    assert set(tokens.tolist()) == {1, 3}


# ---------------------------------------------------------------------------------------------------------
# Log-probabilities
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihood_in_order(model, text: list[int], order: list[int], mask_id: int) -> float:
    """sum_i log p(x_order[i] | what is given, x_order[<i]), one forward a token."""
    canvas = torch.tensor([text])  # (1, L)
    canvas[0, order] = mask_id
    total = 0.0
    for position in order:
        logits = model(input_ids=canvas).logits[0, position].double()  # (V,)
        total += logits.log_softmax(dim=0)[text[position]].item()
        canvas[0, position] = text[position]
    return total


@pytest.mark.parametrize("warp", [{}, {"temperature": 0.5, "top_k": 3}, {"temperature": 0}], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"prefix": [3, 1], "suffix": [7]}], ids=["free", "given"])
@pytest.mark.parametrize(
    "kind", [{"method": "first_hitting"}, *({"order": order} for order in ("forward", "backward", "random"))], ids=str
)
def test_the_log_probabilities_of_a_row_sum_to_its_likelihood_in_that_order(kind, arguments, warp):
    model = longer_model()
    out = model.generate(
        **({"method": "ordered"} | kind),
        **arguments,
        **warp,
        num_return_sequences=4,
        generator=seeded(15),
        return_dict_in_generate=True,
    )
    for text, when, logprobs in zip(
        out.sequences.tolist(), out.reveal_step.tolist(), out.token_logprobs.double(), strict=True
    ):
        masked = [position for position, event in enumerate(when) if event != GIVEN]
        order = sorted(masked, key=lambda position: when[position])
        assert [when[position] for position in order] == list(range(len(masked)))
        if kind.get("order") in ("forward", "backward"):
            assert order == (masked if kind["order"] == "forward" else masked[::-1])
        assert abs(logprobs.sum().item() - log_likelihood_in_order(model, text, order, mask_id=11)) < 1e-5


def test_the_log_probabilities_of_a_given_order_are_those_of_that_order():
    model, order = longer_model(), [4, 0, 8, 2, 6, 1, 7, 3, 5]
    out = model.generate(method="ordered", order=order, generator=seeded(16), return_dict_in_generate=True)
    expected = log_likelihood_in_order(model, out.sequences[0].tolist(), order, mask_id=11)
    assert abs(out.token_logprobs.double().sum().item() - expected) < 1e-5
    shifted = log_likelihood_in_order(model, out.sequences[0].tolist(), order[1:] + order[:1], mask_id=11)
    assert abs(out.token_logprobs.double().sum().item() - shifted) > 1e-2
