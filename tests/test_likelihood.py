"""Likelihood: right in the mean, honest about its error, exact in an order, the same for any batch."""

import json
import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from radd_hf import likelihood
from radd_hf.likelihood import (
    ESTIMATORS,
    ORDER_OF,
    LikelihoodRounds,
    conditional_likelihood,
    estimate_likelihood,
    exact_likelihood,
    mixture_likelihood,
    stratified_round,
    student_quantile,
)
from radd_hf.losses import FIRST_TIME, T_LOSSES
from support.toys import random_model

SEQUENCES = [torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]), torch.tensor([1, 0])]
N_TOKENS = sum(map(len, SEQUENCES))
ALL = torch.ones(3, dtype=torch.bool)
MASK = 2


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=3, max_position_embeddings=3)


def nats_in_order(model, x0, order, visible=()) -> float:
    """The chain rule, a token at a time."""
    canvas, total = torch.full_like(x0, MASK), 0.0
    for position in visible:
        canvas[position] = x0[position]
    for position in order:
        with torch.no_grad():
            logits = model(canvas[None]).logits[0, position]
        total -= logits.double().log_softmax(-1)[x0[position]].item()
        canvas[position] = x0[position]
    return total


def over_all_orders(model) -> float:
    """Nats per token of SEQUENCES."""
    total = 0.0
    for x0 in SEQUENCES:
        orders = list(permutations(range(len(x0))))
        total += sum(nats_in_order(model, x0, order) for order in orders) / len(orders)
    return total / N_TOKENS


def expected_from_first_time(model) -> float:
    """Nats per token that the t losses estimate: 1 / (1 - t0) times the integral of E[S] / t from t0 to 1.

    Of the log-linear noise, whose masks have probability (1 - 1e-3) t. The integrand is a polynomial of degree 2.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(4)
    total = 0.0
    for x0 in SEQUENCES:
        for masked in product([False, True], repeat=len(x0)):
            masked = torch.tensor(masked)
            with torch.no_grad():
                logits = model(x0.masked_fill(masked, MASK)[None]).logits[0].double()
            kernel = -(logits.log_softmax(-1)[range(len(x0)), x0])[masked].sum().item()
            for node, weight in zip(nodes, node_weights, strict=True):
                t = (1 + FIRST_TIME) / 2 + (1 - FIRST_TIME) / 2 * node
                q, k = (1 - 1e-3) * t, int(masked.sum())
                total += weight / 2 * kernel / t * q**k * (1 - q) ** (len(x0) - k)
    return total / N_TOKENS


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name == "ar_random" or name not in ORDER_OF])
def test_the_mean_is_the_derived_expectation_and_the_interval_covers_it_as_often_as_it_says(model, estimator):
    truth = expected_from_first_time(model) if estimator in T_LOSSES else over_all_orders(model)
    settings = {"estimator": estimator, "passes": 4 if estimator == "ar_random" else 16, "batch_size": 500}
    results = [estimate_likelihood(model, SEQUENCES * 4, **settings, seed=seed) for seed in range(200)]
    estimates = torch.tensor([result.nats_per_token for result in results], dtype=torch.float64)
    assert (estimates.mean() - truth).abs() < 3.5 * estimates.std() / 200**0.5
    covered = torch.tensor([result.interval[0] < truth < result.interval[1] for result in results])
    assert 0.91 <= covered.double().mean() <= 0.99
    errors = torch.tensor([result.standard_error for result in results])
    assert 0.85 < errors.square().mean().sqrt() / estimates.std() < 1.15


def test_the_t_losses_leave_out_what_lies_before_their_first_time(model):
    assert expected_from_first_time(model) == pytest.approx(over_all_orders(model), rel=2e-3)
    assert expected_from_first_time(model) != pytest.approx(over_all_orders(model), rel=1e-5)


@pytest.mark.parametrize(("n", "rows"), [(5, 3), (3, 8), (1, 2)])
def test_all_rows_of_a_stratified_round_together_have_the_law_of_k(n, rows):
    """The weights of the rows with k masks add up to n / k times 1 / n, and every token is masked as often."""
    generator, rounds = torch.Generator().manual_seed(0), 4000
    mass, tokens = torch.zeros(n + 1, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for _ in range(rounds):
        drawn = stratified_round(n, rows, generator)
        k = drawn.masked.sum(dim=1)
        mass.index_add_(0, k, drawn.weight * k / n / rounds)
        tokens += (drawn.weight[:, None] * drawn.masked).sum(dim=0) / rounds
        assert torch.equal(k, k.sort().values), "rows of more masks come later"
    assert mass[0] == 0
    torch.testing.assert_close(mass[1:], torch.full((n,), 1 / n, dtype=torch.float64), rtol=0.1, atol=0)
    torch.testing.assert_close(tokens, torch.ones(n, dtype=torch.float64), rtol=0.1, atol=0)


@pytest.mark.parametrize(("name", "order"), [("ar_forward", "forward"), ("ar_backward", "backward")])
def test_one_order_is_exact(model, name, order):
    expected = [
        nats_in_order(model, x0, range(len(x0)) if order == "forward" else reversed(range(len(x0)))) for x0 in SEQUENCES
    ]
    assert exact_likelihood(model, SEQUENCES, order).tolist() == pytest.approx(expected, rel=1e-5)
    result = estimate_likelihood(model, SEQUENCES, estimator=name)
    assert result.nats_per_token == pytest.approx(sum(expected) / N_TOKENS, rel=1e-5)
    assert (result.standard_error, result.passes) == (0.0, 1)


def test_any_order_may_be_given_and_random_ones_differ_between_sequences(model):
    order = torch.tensor([1, 2, 0])
    (nats,) = exact_likelihood(model, SEQUENCES[:1], order).tolist()
    assert nats == pytest.approx(nats_in_order(model, SEQUENCES[0], order.tolist()), rel=1e-5)
    same = [SEQUENCES[0]] * 40
    random = exact_likelihood(model, same, "random", seed=3)
    possible = {round(nats_in_order(model, SEQUENCES[0], order), 4) for order in permutations(range(3))}
    assert {round(value, 4) for value in random.tolist()} == possible
    assert torch.equal(exact_likelihood(model, same, "random", seed=3), random)


def test_a_mixture_of_orders_is_the_mean_of_their_probabilities(model):
    same = SEQUENCES[:1]
    one = mixture_likelihood(model, same, 1, seed=5)
    assert one == pytest.approx(exact_likelihood(model, same, "random", seed=5))
    probabilities = [math.exp(-nats_in_order(model, same[0], order)) for order in permutations(range(3))]
    many = mixture_likelihood(model, same, 2000, batch_size=1000).item()
    assert many == pytest.approx(-math.log(sum(probabilities) / 6), rel=0.02)
    assert many < sum(-math.log(p) for p in probabilities) / 6


def test_what_is_given_is_visible_and_not_scored(model):
    x0 = torch.tensor([1, 0, 1])
    (infill,) = conditional_likelihood(model, [x0[1:2]], prefixes=[x0[:1]], suffixes=[x0[2:]]).tolist()
    assert infill == pytest.approx(nats_in_order(model, x0, [1], visible=[0, 2]), rel=1e-5)
    (continuation,) = conditional_likelihood(model, [x0[1:]], prefixes=[x0[:1]], order="backward").tolist()
    assert continuation == pytest.approx(nats_in_order(model, x0, [2, 1], visible=[0]), rel=1e-5)


def test_estimates_given_the_rest_have_the_mean_of_all_orders_of_the_scored_tokens(model):
    x0, scored = torch.tensor([1, 0, 1]), torch.tensor([True, False, True])
    truth = sum(nats_in_order(model, x0, order, visible=[1]) for order in ([0, 2], [2, 0])) / 2
    result = estimate_likelihood(model, [x0] * 100, passes=8, scored=[scored] * 100)
    assert result.n_tokens == 200
    assert abs(result.nats_per_token - truth / 2) < 4 * result.standard_error


def test_arrays_of_numpy_and_lists_are_ids_and_their_numbers_numbers(model):
    arrays, lists = [np.array(each) for each in SEQUENCES], [each.tolist() for each in SEQUENCES]
    result = estimate_likelihood(model, SEQUENCES, passes=4, batch_size=3, seed=5)
    numbers = {"passes": np.int64(4), "batch_size": np.int32(3), "seed": np.int64(5)}
    assert estimate_likelihood(model, arrays, **numbers) == estimate_likelihood(model, lists, **numbers) == result
    assert json.loads(json.dumps(estimate_likelihood(model, lists, **numbers).to_dict()))["passes"] == 4
    order, scored = np.array([1, 0]), [np.array([True, False, True])]
    one = exact_likelihood(model, SEQUENCES[:1], torch.tensor([1, 0]), scored=[torch.tensor([True, False, True])])
    assert torch.equal(one, exact_likelihood(model, arrays[:1], order, scored=scored))
    infill = conditional_likelihood(model, [torch.tensor([0])], prefixes=[torch.tensor([1])])
    assert torch.equal(infill, conditional_likelihood(model, np.array([[0]]), prefixes=np.array([[1]])))


@pytest.mark.parametrize("ids", [[0.5, 1.5], [[1, 0]], ["a"]])
def test_sequences_that_are_no_ids_are_refused_with_their_place(model, ids):
    with pytest.raises(ValueError, match=r"sequences\[1\]"):
        exact_likelihood(model, [SEQUENCES[0], ids])


def test_the_chain_rule_joins_a_text_and_its_continuation(model):
    x0 = SEQUENCES[0]
    begun = exact_likelihood(model, [x0], torch.tensor([0, 1, 2])).item()
    rest = conditional_likelihood(model, [x0[1:]], prefixes=[x0[:1]]).item()
    with torch.no_grad():  # the first token where all three are masked
        first = -model(torch.tensor([[MASK] * 3])).logits[0, 0].log_softmax(-1)[x0[0]].item()
    assert begun == pytest.approx(first + rest, rel=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_result_does_not_depend_on_the_batch_size(model, estimator):
    values = [
        estimate_likelihood(model, SEQUENCES, estimator=estimator, passes=6, batch_size=size).nats_per_token
        for size in (1, 4, 100)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_rounds_that_are_known_are_not_computed_again(model, monkeypatch):
    def run(**settings) -> tuple[dict, object]:
        rounds = LikelihoodRounds(model, SEQUENCES, **settings)
        found = {(each.sequence, each.number): each.nats for each in rounds}
        return found, rounds.summary()

    known, whole = run()
    assert whole == estimate_likelihood(model, SEQUENCES)
    assert set(known) == set(product(range(3), range(2)))
    some = {key: known[key] for key in ((0, 0), (2, 1))}
    computed, resumed = run(known=some)
    assert resumed.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-6)
    assert set(computed) == set(known) - set(some)
    monkeypatch.setattr(model, "forward", lambda *a, **k: pytest.fail("computed again"))
    assert run(known=known) == ({}, whole)


def test_there_is_no_summary_before_the_rounds_are_computed(model):
    with pytest.raises(RuntimeError, match="iterate over them first"):
        LikelihoodRounds(model, SEQUENCES).summary()


def test_whoever_stops_asking_for_rounds_has_a_training_model_as_before(model):
    model.train()
    rounds = iter(LikelihoodRounds(model, SEQUENCES))
    next(rounds)
    rounds.close()
    assert model.training
    model.eval()


def test_rounds_are_added_until_the_error_is_as_small_as_was_asked(model):
    first = estimate_likelihood(model, SEQUENCES, passes=16)
    result = estimate_likelihood(model, SEQUENCES, passes=100_000, target_se=first.standard_error / 3)
    assert result.standard_error <= first.standard_error / 3
    assert 16 < result.passes < 3000
    with pytest.raises(ValueError, match=r"target_se=1e-06 would take about \d+ passes, .* passes=64 are allowed"):
        estimate_likelihood(model, SEQUENCES, passes=64, target_se=1e-6)


def test_sequences_may_weigh_otherwise_than_by_their_tokens(model):
    exact = [nats_in_order(model, x0, range(len(x0))) / len(x0) for x0 in SEQUENCES]
    weights = torch.tensor([0.5, 0.25, 0.25])
    result = estimate_likelihood(model, SEQUENCES, estimator="ar_forward", weights=weights)
    assert result.nats_per_token == pytest.approx(float(weights.double() @ torch.tensor(exact).double()), rel=1e-5)


@pytest.mark.parametrize("estimator", ["k_stratified", "ar_random"])
def test_the_head_runs_where_a_token_is_scored_and_nowhere_else(model, monkeypatch, estimator):
    positions, rounds = [], []
    head = model.lm_head.register_forward_hook(lambda _, inputs, output: positions.append(len(inputs[0])))
    draw = likelihood.draw_round

    def recorded(*arguments):
        rounds.append(draw(*arguments))
        return rounds[-1]

    monkeypatch.setattr(likelihood, "draw_round", recorded)
    estimate_likelihood(model, SEQUENCES, estimator=estimator, passes=4)
    head.remove()
    assert sum(positions) == sum(int(drawn.scored.sum()) for drawn in rounds)


def test_units_agree_with_each_other(model):
    result = estimate_likelihood(model, SEQUENCES, n_bytes=20)
    assert result.n_tokens == 8
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_token))
    assert result.bits_per_byte == pytest.approx(result.nats_per_token * 8 / 20 / math.log(2))
    figures = result.to_dict()
    assert figures["bits_per_byte_error"] == result.bits_per_byte_error > 0
    assert figures["perplexity_interval"] == pytest.approx([math.exp(end) for end in result.interval])
    low, high = figures["bits_per_byte_interval"]
    assert low < result.bits_per_byte < high
    exact = estimate_likelihood(model, SEQUENCES[:1], estimator="ar_forward").to_dict()
    assert json.loads(json.dumps(exact, allow_nan=False))["spread"] is None


def test_the_spread_between_sequences_is_told_apart_from_the_error(model):
    exact = [nats_in_order(model, x0, range(len(x0))) / len(x0) for x0 in SEQUENCES]
    result = estimate_likelihood(model, SEQUENCES, estimator="ar_forward")
    assert result.spread == pytest.approx(torch.tensor(exact).std().item(), rel=1e-4)
    assert result.standard_error == 0


@pytest.mark.parametrize("degrees", [3, 5, 10, 100, math.inf])
def test_intervals_are_students(degrees):
    assert student_quantile(degrees) == pytest.approx(student.ppf(0.975, degrees), rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passes": 3}, "passes=3 must be a positive multiple of 2"),
        ({"passes": 0}, "passes=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": True}, "seed=True must be an integer"),
        ({"seed": 1.5}, r"seed=1\.5 must be an integer"),
        ({"estimator": "nll"}, "estimator='nll' must be one of"),
        ({"batch_size": 1.5}, r"batch_size=1\.5 must be an integer"),
        ({"scored": [ALL, ALL]}, "scored must hold one mask for each of the 3 sequences; it has 2"),
        ({"scored": [~ALL, ALL, ALL[:2]]}, r"sequences\[0\], of 3 tokens, must have at least one token to score"),
        (
            {"scored": [ALL.int(), ALL, ALL[:2]]},
            r"scored\[0\] has shape \(3,\) and dtype torch\.int32; it must be boolean",
        ),
        ({"passes": 2**70}, "passes=1180591620717411303424 .* It must be at most 1048576"),
        ({"batch_size": 2**70}, "batch_size=1180591620717411303424 must be an integer"),
        ({"target_se": True}, "target_se=True must be a positive number"),
        ({"target_se": "1"}, "target_se='1' must be a positive number"),
        ({"target_se": math.nan}, "target_se=nan must be a positive number"),
        ({"target_se": 1e-320}, "target_se=1e-320 would take about"),
        ({"n_bytes": 0}, "n_bytes=0 must be an integer of at least 1"),
        ({"n_bytes": math.nan}, "n_bytes=nan must be an integer"),
        ({"weights": "ab"}, "weights='ab' must be a tensor"),
        ({"weights": [2, -1, 0]}, r"weights of shape \(3,\), the least -1, add up to 1; .* none negative"),
        ({"scored": 3}, "scored=3 must be a list"),
        ({"scored": [ALL, ALL, ALL]}, r"scored\[2\] has shape \(3,\) .*; it must be boolean, \(2,\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate_likelihood(model, SEQUENCES, **arguments)


@pytest.mark.parametrize(
    "order",
    [
        "sideways",
        torch.tensor([0, 0, 1]),
        [0, 1],
        [0, 1, 3],
        [-1, 0, 1],
        [2.0, 0, 1],
        [True, False, 2],
        [[2, 0, 1]],
        3,
    ],
)
def test_an_order_that_is_none_is_refused(model, order):
    with pytest.raises(ValueError, match=r"^order"):
        exact_likelihood(model, SEQUENCES[:1], order)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda order: torch.tensor(order, dtype=torch.uint8)])
def test_an_order_may_be_written_in_any_kind_of_integers(model, kind):
    expected = exact_likelihood(model, SEQUENCES[:1], torch.tensor([2, 0, 1]))
    assert torch.equal(exact_likelihood(model, SEQUENCES[:1], kind([2, 0, 1])), expected)


def test_an_order_that_fits_some_sequences_only_is_refused_before_any_is_computed(model, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda *a, **k: pytest.fail("computed"))
    with pytest.raises(ValueError, match=r"order has shape \(3,\) .* positions as integers, \(2,\)"):
        exact_likelihood(model, [*SEQUENCES[:1] * 3, SEQUENCES[2]], [2, 0, 1], batch_size=1)


IDS_OF_EVERY_KIND = {
    "int16": lambda x: x.short(),
    "uint8": lambda x: x.to(torch.uint8),
    "int32": lambda x: x.int(),
    "list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy().astype("uint16"),
}


@pytest.mark.parametrize("kind", IDS_OF_EVERY_KIND)
@pytest.mark.parametrize("estimator", ["k_stratified", "ar_forward"])
def test_ids_may_be_integers_of_any_kind(model, estimator, kind):
    sequences = [IDS_OF_EVERY_KIND[kind](x0) for x0 in SEQUENCES]
    found, expected = (estimate_likelihood(model, texts, estimator=estimator) for texts in (sequences, SEQUENCES))
    assert found == expected


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (torch.tensor([0, -100, 1]), r"sequences\[1\] holds -100 at position 1; the ids of a text lie in 0 \.\. 2"),
        (torch.tensor([0, 1, 3]), r"sequences\[1\] holds 3 at position 2"),
        (torch.tensor([MASK, 1]), r"sequences\[1\] holds 2 at position 0; .* are not the mask, 2"),
        (torch.tensor([0.0, 1.0]), r"sequences\[1\] has shape \(2,\) and dtype torch\.float32; it must hold the ids"),
        (torch.tensor([[0, 1]]), r"sequences\[1\] has shape \(1, 2\)"),
        ("01", r"sequences\[1\]='01' must be a tensor"),
        ([True, 1], r"sequences\[1\]=\[True, 1\] holds True or False beside numbers"),
        ([1, 2**70], r"sequences\[1\]=.* must be a tensor"),
    ],
)
def test_what_is_no_text_is_refused_by_name_before_any_work(model, monkeypatch, sequence, message):
    monkeypatch.setattr(model, "forward", lambda *a, **k: pytest.fail("computed"))
    for function in (estimate_likelihood, exact_likelihood):
        with pytest.raises(ValueError, match=message):
            function(model, [SEQUENCES[0], sequence])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": []}, "sequences must hold at least one sequence"),
        ({"targets": [torch.tensor([], dtype=torch.int64)], "prefixes": [[1]]}, r"targets\[0\] is empty"),
        ({"targets": [[1]], "prefixes": [[0], [1]]}, "prefixes must hold one for each of the 1 targets; it has 2"),
        ({"targets": [[1]], "suffixes": []}, "suffixes must hold one for each of the 1 targets; it has 0"),
        ({"targets": [[1]], "suffixes": [[MASK]]}, r"suffixes\[0\] holds 2 at position 0"),
        ({"targets": [[1]], "batch_size": 0}, "batch_size=0"),
        ({"targets": 3}, "targets=3 must be a list"),
        ({"targets": [[1]], "prefixes": 3}, "prefixes=3 must be a list"),
        ({"targets": [[1]], "prefixes": [[-100]]}, r"prefixes\[0\] holds -100 at position 0"),
    ],
)
def test_what_a_conditional_likelihood_cannot_take_is_refused_by_name(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        conditional_likelihood(model, **arguments)


@pytest.mark.parametrize("sequences", [None, 3, "01", {0: [0, 1]}, {(0, 1)}, iter([[0, 1]]), torch.tensor(1)])
def test_sequences_that_are_no_list_are_refused_by_name(model, sequences):
    for function in (estimate_likelihood, exact_likelihood):
        with pytest.raises(ValueError, match=r"sequences=.* must be a list"):
            function(model, sequences)


@pytest.mark.parametrize("sequences", [[], [torch.tensor([], dtype=torch.long)], torch.zeros(0, 3), torch.zeros(2, 0)])
def test_nothing_to_score_is_refused(model, sequences):
    with pytest.raises(ValueError, match="at least one"):
        estimate_likelihood(model, sequences)


def test_the_name_of_a_model_is_refused_as_none():
    for call in (lambda: exact_likelihood("radd", [[4]]), lambda: estimate_likelihood("radd", [[4, 5]])):
        with pytest.raises(TypeError, match="model='radd' must be a model, loaded by"):
            call()
