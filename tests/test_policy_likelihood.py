"""The likelihood of texts in the order that a policy chooses: the distribution that is enumerated, and `generate`'s."""

import itertools

import pytest
import torch

from radd_hf import policy_likelihood
from radd_hf.likelihood import (
    LikelihoodRounds,
    conditional_likelihood,
    count_evaluations,
    estimate_likelihood,
    exact_likelihood,
)
from radd_hf.policy_likelihood import nats_under_policy
from radd_hf.policy_radd import Policy
from support.laws import (
    FREE,
    LENGTH,
    MASK,
    adaptive_joint_law,
    joint_law,
    logits_by_canvas,
    marginal,
    ordered_plans,
    rightmost_and_certain,
)
from support.toys import FlatNetwork, TableNetwork, random_model, seeded, tiny_model

NETWORKS = {"table": TableNetwork(), "real": tiny_model()}
TEXTS = list(itertools.product(range(MASK), repeat=LENGTH))
HOW = {
    "confidence": {"order": "confidence"},
    "margin": {"order": "margin"},
    "entropy": {"order": "entropy"},
    "confidence, 2 events": {"order": "confidence", "steps": 2},
    "entropy, 1 event": {"order": "entropy", "steps": 1},
    "margin, more events than tokens": {"order": "margin", "steps": 9},
    "bound 0": {"entropy_bound": 0},
    "bound 0.7": {"entropy_bound": 0.7},
    "bound 0.7 by margin": {"order": "margin", "entropy_bound": 0.7},
    "bound 9": {"entropy_bound": 9.0},
    "threshold 0.6": {"confidence_threshold": 0.6},
    "threshold 0.6 by entropy": {"order": "entropy", "confidence_threshold": 0.6},
    "a function": {"order": rightmost_and_certain},
}
each_way = pytest.mark.parametrize("how", HOW.values(), ids=HOW)
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
each_order = pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])


def ids(texts) -> list[torch.Tensor]:
    return [torch.tensor(text) for text in texts]


# ---------------------------------------------------------------------------------------------------------
# The distribution
# ---------------------------------------------------------------------------------------------------------


@each_network
@each_way
def test_the_probability_of_every_text_is_that_of_its_way_through_the_tree_of_masked_sequences(network, how):
    law = marginal(adaptive_joint_law(logits_by_canvas(network), FREE, how), LENGTH)
    found = exact_likelihood(network, ids(TEXTS), **how, batch_size=10).neg().exp()
    assert found.tolist() == pytest.approx([law[text] for text in TEXTS], rel=1e-5)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


@each_network
@each_way
def test_tokens_that_are_not_scored_are_visible_from_the_beginning(network, how):
    scored = [torch.tensor([True, False, True])] * len(TEXTS)
    found = exact_likelihood(network, ids(TEXTS), **how, scored=scored, batch_size=10).neg().exp()
    for given in range(MASK):
        law = marginal(adaptive_joint_law(logits_by_canvas(network), (MASK, given, MASK), how), LENGTH)
        here = {text: p for text, p in zip(TEXTS, found.tolist(), strict=True) if text[1] == given}
        assert here == {text: pytest.approx(law[text], rel=1e-5) for text in here}
        assert sum(here.values()) == pytest.approx(1, abs=1e-5)


@each_way
def test_between_a_prefix_and_a_suffix_the_probabilities_of_all_targets_sum_to_one(how):
    targets = list(itertools.product(range(MASK), repeat=2))
    sides = {"prefixes": [[1]] * len(targets), "suffixes": [[2, 0]] * len(targets)}
    model = tiny_model(length=5)
    nats = conditional_likelihood(model, ids(targets), **sides, **how)
    assert float(nats.neg().exp().sum()) == pytest.approx(1, abs=1e-5)
    whole, scored = ids((1, *target, 2, 0) for target in targets), torch.tensor([False, True, True, False, False])
    assert torch.equal(exact_likelihood(model, whole, **how, scored=[scored] * len(targets)), nats)


@pytest.mark.parametrize("how", [{"steps": 2}, {"steps": 3}, {"entropy_bound": 0.4}, {"confidence_threshold": 0.5}])
@each_order
def test_longer_texts_have_a_distribution_in_groups_of_several_sizes(order, how):
    texts = ids(itertools.product(range(MASK), repeat=5))
    nats = exact_likelihood(TableNetwork(length=5), texts, order, **how, batch_size=len(texts))
    assert float(nats.neg().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("order", ["forward", "backward", [2, 0, 1]])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_an_order_known_beforehand_can_be_taken_in_balanced_groups(order, steps):
    network = tiny_model()
    plans = ordered_plans(order, list(range(LENGTH)), steps)
    law = marginal(joint_law(logits_by_canvas(network), FREE, plans), LENGTH)
    found = exact_likelihood(network, ids(TEXTS), order, steps=steps).neg().exp()
    assert found.tolist() == pytest.approx([law[text] for text in TEXTS], rel=1e-5)


@each_way
@pytest.mark.parametrize("settings", [{}, {"prefix": [1, 2]}, {"suffix": [0]}])
def test_the_likelihood_of_a_sample_is_the_sum_of_its_tokens_log_probabilities(how, settings):
    model, length = random_model(vocab_size=12, max_position_embeddings=9), 9
    out = model.generate(
        **settings,
        length=length,
        method="ordered",
        **how,
        num_return_sequences=6,
        seed=1,
        return_dict_in_generate=True,
    )
    scored = [row >= 0 for row in out.reveal_step]
    found = exact_likelihood(model, list(out.sequences), **how, scored=scored, batch_size=6)
    torch.testing.assert_close(found, -out.token_logprobs.double().sum(dim=1), rtol=1e-4, atol=1e-4)


def in_the_order_of_the_text(look):
    """Plants an error: the tokens of the text that are guessed best come first."""

    def look_at_the_text(*arguments):
        beliefs, nll = look(*arguments)
        return beliefs._replace(certainty=-nll), nll

    return look_at_the_text


def of_another_temperature(look):
    """Plants an error: all nats are 5 % too many, as at another temperature."""

    def look_hotter(*arguments):
        beliefs, nll = look(*arguments)
        return beliefs, nll * 1.05

    return look_hotter


@each_network
@pytest.mark.parametrize("plant", [in_the_order_of_the_text, of_another_temperature])
@each_order
def test_the_sum_of_all_probabilities_tells_a_planted_error(monkeypatch, network, plant, order):
    monkeypatch.setattr(policy_likelihood, "_look", plant(policy_likelihood._look))
    nats = exact_likelihood(network, ids(TEXTS), order)
    assert abs(float(nats.neg().exp().sum()) - 1) > 0.01


# ---------------------------------------------------------------------------------------------------------
# The way there
# ---------------------------------------------------------------------------------------------------------


@each_order
def test_ties_go_to_the_left_and_what_is_masked_yet_is_nan(order):
    x0, masked = torch.tensor([[1, 0, 2, 1]]), torch.tensor([[True, False, True, True]])
    ways = list(nats_under_policy(FlatNetwork(vocab_size=4, length=4), x0, masked, Policy(order)))
    assert [nats.isnan().tolist() for nats in ways] == [
        [[False, False, True, True]],
        [[False, False, False, True]],
        [[False, False, False, False]],
    ]
    third = torch.tensor(3.0, dtype=torch.float64).log().item()
    assert ways[-1][0].tolist() == pytest.approx([third, 0, third, third], rel=1e-6)


def some_texts(count: int = 7) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Texts of two lengths, and where they are scored: at as many tokens as chance will have."""
    generator = seeded(3)
    texts = [torch.randint(11, (8 + index % 2,), generator=generator) for index in range(count)]
    scored = [torch.rand(len(text), generator=generator) < 0.6 for text in texts]
    for where in scored:
        where[0] = True
    return texts, scored


@each_way
def test_batches_and_lengths_change_nothing_beyond_rounding(how):
    model, (texts, scored) = random_model(vocab_size=12, max_position_embeddings=9), some_texts()
    one, three, all_ = (exact_likelihood(model, texts, **how, scored=scored, batch_size=size) for size in (1, 3, 99))
    torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(all_, one, rtol=1e-5, atol=1e-5)


def test_rows_without_a_mask_are_no_longer_evaluated():
    network = FlatNetwork(vocab_size=4, length=4)
    masked = torch.tensor([[True, False, False, False], [True, True, True, False], [False, True, True, False]])
    list(nats_under_policy(network, torch.ones(3, 4, dtype=torch.long), masked, Policy("margin")))
    assert network.rows_evaluated == [3, 2, 1]


def test_fewer_events_take_fewer_evaluations():
    network = FlatNetwork(vocab_size=4, length=9)
    exact_likelihood(network, [torch.ones(9, dtype=torch.long)], "entropy", steps=4)
    assert network.rows_evaluated == [1] * 4


@each_way
def test_the_head_runs_on_a_chunk_of_the_masks_at_a_time(monkeypatch, how):
    model, (texts, scored) = random_model(vocab_size=12, max_position_embeddings=9), some_texts()
    expected, sizes = exact_likelihood(model, texts, **how, scored=scored), []
    monkeypatch.setattr(policy_likelihood, "MAX_DRAW_ELEMENTS", 2 * 12)
    model.lm_head.register_forward_hook(lambda _, inputs, output: sizes.append(len(inputs[0])))
    found = exact_likelihood(model, texts, **how, scored=scored)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert max(sizes) <= (9 if callable(how.get("order")) else 2), "a function of the user's sees a whole row"


def test_a_function_sees_the_scores_of_one_rows_masks_from_left_to_right():
    seen = []

    def order(scores, positions):
        seen.append((tuple(scores.shape), positions.tolist()))
        return positions == positions.max()

    texts, scored = [torch.tensor([1, 2, 0]), torch.tensor([0, 1, 2])], torch.tensor([True, True, True])
    exact_likelihood(tiny_model(), texts, order, scored=[scored, torch.tensor([False, True, True])])
    assert sorted(seen) == sorted(
        [((3, 4), [0, 1, 2]), ((2, 4), [1, 2]), ((2, 4), [0, 1]), ((1, 4), [1]), ((1, 4), [0])]
    )


def test_evaluations_in_a_chosen_order_are_counted_one_after_the_other():
    scored = [torch.ones(5, dtype=torch.bool)] * 3 + [torch.tensor([True, False, True])]
    assert count_evaluations(scored, 1, None, batch_size=2, adaptive=True) == 2 * 5 + 1 * 2
    assert count_evaluations(scored, 1, None, batch_size=2) == 8 + 1


# ---------------------------------------------------------------------------------------------------------
# As an estimator
# ---------------------------------------------------------------------------------------------------------


@each_order
def test_an_estimator_of_each_order_is_exact(order):
    model, (texts, scored) = random_model(vocab_size=12, max_position_embeddings=9), some_texts()
    result = estimate_likelihood(model, texts, estimator=f"ar_{order}", scored=scored, target_se=0.1)
    expected = exact_likelihood(model, texts, order, scored=scored)
    assert result.nats_per_token == pytest.approx(float(expected.sum()) / result.n_tokens, rel=1e-6)
    assert (result.standard_error, result.passes, result.estimator) == (0.0, 1, f"ar_{order}")


def test_sequences_in_a_chosen_order_that_are_known_are_not_computed_again():
    model, (texts, _) = random_model(vocab_size=12, max_position_embeddings=9), some_texts()
    rounds = LikelihoodRounds(model, texts, estimator="ar_margin", batch_size=2)
    found = {(each.sequence, each.number): each.nats for each in rounds}
    assert set(found) == {(index, 0) for index in range(len(texts))}
    known = {place: found[place] for place in ((1, 0), (4, 0))}
    resumed = LikelihoodRounds(model, texts, estimator="ar_margin", batch_size=2, known=known)
    assert {(each.sequence, each.number) for each in resumed} == found.keys() - known.keys()
    assert resumed.summary().nats_per_token == pytest.approx(rounds.summary().nats_per_token, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------
# Defaults and refusals
# ---------------------------------------------------------------------------------------------------------


def test_a_bound_without_an_order_has_the_order_that_generate_gives_it():
    model, (texts, _) = random_model(vocab_size=12, max_position_embeddings=9), some_texts()
    for bound, order in (({"entropy_bound": 0.9}, "entropy"), ({"confidence_threshold": 0.3}, "confidence")):
        assert torch.equal(exact_likelihood(model, texts, **bound), exact_likelihood(model, texts, order, **bound))
    assert torch.equal(exact_likelihood(model, texts), exact_likelihood(model, texts, "forward"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"order": "certainty"}, "order='certainty' must be one of"),
        ({"entropy_bound": -1}, "entropy_bound=-1 must be a number of nats"),
        ({"confidence_threshold": 1.5}, r"confidence_threshold=1\.5 must be a probability"),
        ({"order": "entropy", "steps": 0}, "steps=0 must be an integer of at least 1"),
        ({"order": "forward", "entropy_bound": 0.5}, r"entropy_bound=0\.5 is for order='confidence'"),
        ({"order": [2, 0, 1], "confidence_threshold": 0.5}, r"confidence_threshold=0\.5 is for order='confidence'"),
        ({"order": rightmost_and_certain, "entropy_bound": 0.5}, r"entropy_bound=0\.5 is for order='confidence'"),
        ({"order": rightmost_and_certain, "steps": 2}, "steps=2 does not fit a function as order"),
        ({"order": "entropy", "entropy_bound": 0.5, "steps": 2}, r"entropy_bound=0\.5 and steps=2 both say"),
        ({"entropy_bound": 0.5, "confidence_threshold": 0.5}, r"entropy_bound=0\.5 and confidence_threshold=0\.5"),
    ],
)
def test_an_order_and_bounds_that_do_not_fit_are_refused_before_any_work(monkeypatch, how, message):
    model = tiny_model()
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setattr(model.model, "forward", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        exact_likelihood(model, ids(TEXTS), **how)
    with pytest.raises(ValueError, match=message):
        conditional_likelihood(model, ids(TEXTS), **how)


@pytest.mark.parametrize(("answer", "message"), [([], "chose no position"), ([7], "must return the places of some")])
def test_a_function_that_chooses_nothing_that_is_masked_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        exact_likelihood(tiny_model(), ids(TEXTS), lambda scores, positions: torch.tensor(answer, dtype=torch.long))
