# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The information profile: what it predicts of tokens drawn together, its estimate, and the schedule made of it.

The prediction is held against divergences that are enumerated: over texts, orders and groups, without the profile.

Shapes: L length, V vocabulary (mask last), S texts.
"""

import itertools
import math
import time

import pytest
import torch

from radd_hf import RaddForMaskedLM, RaddGenerationConfig, information_profile
from radd_hf.information import falling_curve
from radd_hf.noise_radd import GeometricNoise, LogLinearNoise, reveal_probabilities
from radd_hf.plan_radd import (
    balanced_sizes,
    expected_kl,
    expected_kl_of_grid,
    group_sizes,
    plan_sequence,
    profile_of_length,
)
from support.laws import (
    ACCEPTED,
    BY_NAME,
    FREE,
    LENGTH,
    MASK,
    REFUSED,
    compositions,
    goodness_of_fit,
    grid_plans,
    joint_law,
    logits_by_canvas,
    marginal,
    nats_of_groups,
    ordered_plans,
    p_value,
    table_network,
    token_law,
)
from support.toys import FlatNetwork, StandIn, random_model, seeded, tiny_model

TEXTS = list(itertools.product(range(MASK), repeat=LENGTH))


class JointNetwork(StandIn):
    """The conditionals of one distribution over all texts, `law` (V - 1,) * L."""

    def __init__(self, seed: int = 0):
        super().__init__(MASK + 1, LENGTH)
        self.law = torch.rand(MASK**LENGTH, generator=seeded(seed), dtype=torch.float64).pow(3).view(FREE)
        self.law /= self.law.sum()

    def logits(self, canvas: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.conditionals(row) for row in canvas.tolist()])  # (B, L, V)

    def conditionals(self, canvas: list[int]) -> torch.Tensor:
        seen = self.law.clone()
        for position, token in enumerate(canvas):
            if token != MASK:
                other = torch.arange(MASK) != token
                seen.index_fill_(position, other.nonzero().flatten(), 0)
        marginals = [seen.sum(dim=[axis for axis in range(LENGTH) if axis != position]) for position in range(LENGTH)]
        return torch.cat([torch.stack(marginals), torch.zeros(LENGTH, 1)], dim=1).log().float()  # (L, V)


def law_of(network: JointNetwork) -> dict[tuple[int, ...], float]:
    return {text: float(network.law[text]) for text in TEXTS}


def canvases_of(text: tuple[int, ...], visible: int):
    """All canvases with so many tokens of the text."""
    for seen in itertools.combinations(range(LENGTH), visible):
        yield tuple(token if position in seen else MASK for position, token in enumerate(text))


def enumerated_profile(logits_of, texts: dict[tuple[int, ...], float]) -> list[float]:
    """The mean of -log p of a masked token, over texts, canvases with v visible tokens, and masked tokens."""
    profile = []
    for visible in range(LENGTH):
        total = 0.0
        for text, weight in texts.items():
            nats = [
                -math.log(token_law(logits_of(canvas)[position])[text[position]])
                for canvas in canvases_of(text, visible)
                for position in range(LENGTH)
                if canvas[position] == MASK
            ]
            total += weight * sum(nats) / len(nats)
        profile.append(total)
    return profile


def enumerated_divergence(logits_of, texts, given: int, plans_of) -> float:
    """Mean over texts, `given` tokens and plans of log p(the rest) one by one less in groups; the orders are the same.

    plans_of: returns P(plan) of the masked positions; positions of one step of a plan are ordered at random.
    """

    def log_probability(canvas, plan) -> float:
        law = marginal(joint_law(logits_of, canvas, {plan: 1.0}), LENGTH)
        return math.log(law[text])

    total = 0.0
    for text, weight in texts.items():
        canvases = list(canvases_of(text, given))
        for canvas in canvases:
            masked = [position for position, token in enumerate(canvas) if token == MASK]
            for plan, probability in plans_of(masked).items():
                refined = [
                    tuple(sorted(order, key=lambda i: plan[i]).index(i) for i in range(len(masked)))
                    for order in itertools.permutations(range(len(masked)))
                ]
                one_by_one = sum(log_probability(canvas, each) for each in refined) / len(refined)
                total += weight / len(canvases) * probability * (one_by_one - log_probability(canvas, plan))
    return total


def plans_in_groups(masked: list[int], sizes: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    events = [group for group, size in enumerate(sizes) for _ in range(size)]
    plans: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(masked))):
        plan = tuple(events[order.index(place)] for place in range(len(masked)))
        plans[plan] = plans.get(plan, 0) + 1 / math.factorial(len(masked))
    return plans


GROUPS = [(0, (1, 1, 1)), (0, (1, 2)), (0, (2, 1)), (0, (3,)), (1, (2,)), (1, (1, 1))]
joint_network = JointNetwork()


# ---------------------------------------------------------------------------------------------------------
# What the profile predicts
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "sizes"), GROUPS)
def test_the_expected_divergence_is_the_enumerated_one(given, sizes):
    texts, logits_of = law_of(joint_network), logits_by_canvas(joint_network)
    profile = enumerated_profile(logits_of, texts)
    found = enumerated_divergence(logits_of, texts, given, lambda masked: plans_in_groups(masked, sizes))
    assert expected_kl(profile, sizes) == pytest.approx(found, abs=1e-6)


def test_of_one_distribution_it_is_the_divergence_of_groups_from_that_distribution():
    texts, logits_of = law_of(joint_network), logits_by_canvas(joint_network)
    profile = enumerated_profile(logits_of, texts)
    for sizes in [(1, 1, 1), (1, 2), (2, 1), (3,)]:
        found = 0.0
        for plan, probability in plans_in_groups([0, 1, 2], sizes).items():
            groups = marginal(joint_law(logits_of, FREE, {plan: 1.0}), LENGTH)
            found += probability * sum(p * math.log(p / groups[text]) for text, p in texts.items())
        assert expected_kl(profile, sizes) == pytest.approx(found, abs=1e-6)
    assert expected_kl(profile, (3,)) > 0.05


@pytest.mark.parametrize(("given", "sizes"), GROUPS)
def test_of_any_network_and_any_texts_it_is_what_groups_add_to_the_nats(given, sizes):
    """The conditionals of a table belong to no distribution, and the texts to another."""
    texts, logits_of = law_of(JointNetwork(seed=5)), logits_by_canvas(table_network())
    profile = enumerated_profile(logits_of, texts)
    found = enumerated_divergence(logits_of, texts, given, lambda masked: plans_in_groups(masked, sizes))
    assert expected_kl(profile, sizes) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("noise", [LogLinearNoise(), GeometricNoise()], ids=["loglinear", "geometric"])
@pytest.mark.parametrize("given", [0, 1])
def test_the_expected_divergence_of_a_grid_is_the_enumerated_one(noise, steps, given):
    texts, logits_of = law_of(joint_network), logits_by_canvas(joint_network)
    profile = enumerated_profile(logits_of, texts)
    kind = "loglinear" if isinstance(noise, LogLinearNoise) else "geometric"
    plans = grid_plans(kind, "tweedie", steps, LENGTH - given, True)
    found = enumerated_divergence(logits_of, texts, given, lambda _: plans)
    reveal = reveal_probabilities(noise, "tweedie", steps)
    assert expected_kl_of_grid(profile, LENGTH - given, reveal) == pytest.approx(found, abs=1e-6)


def test_the_divergence_of_other_groups_does_not_pass():
    texts, logits_of = law_of(joint_network), logits_by_canvas(joint_network)
    profile = enumerated_profile(logits_of, texts)
    found = enumerated_divergence(logits_of, texts, 0, lambda masked: plans_in_groups(masked, (2, 1)))
    for planted in (expected_kl(profile, (1, 2)), expected_kl([profile[0], *profile[:-1]], (2, 1))):
        assert abs(planted - found) > 0.01


# ---------------------------------------------------------------------------------------------------------
# The best groups
# ---------------------------------------------------------------------------------------------------------


def draw_profile(length: int, seed: int) -> list[float]:
    return torch.rand(length, generator=seeded(seed), dtype=torch.float64).mul(6).sort(descending=True).values.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("masked", [1, 4, 7])
@pytest.mark.parametrize("given", [0, 2])
def test_no_other_groups_lose_less(masked, given, seed):
    profile = draw_profile(masked + given, seed)
    for steps in range(1, masked + 2):
        sizes = group_sizes(profile, masked, steps)
        assert sum(sizes) == masked
        assert len(sizes) == min(steps, masked)
        best = min(nats_of_groups(profile, each) for each in compositions(masked, len(sizes)))
        assert nats_of_groups(profile, sizes) == pytest.approx(best, abs=1e-12)
        assert expected_kl(profile, sizes) == pytest.approx(best - sum(profile[given:]), abs=1e-12)


def test_along_a_straight_line_balanced_groups_lose_least():
    profile = [5 - 0.01 * visible for visible in range(120)]
    for steps in (1, 8, 17, 60):
        assert expected_kl(profile, group_sizes(profile, 120, steps)) == pytest.approx(
            expected_kl(profile, balanced_sizes(120, steps))
        )


def test_where_a_profile_falls_steeply_groups_are_small():
    sizes = group_sizes([4 + 3 / (1 + visible) for visible in range(256)], 256, 16)
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] > 50


def test_the_best_64_groups_of_1024_tokens_are_found_by_few_operations(monkeypatch):
    calls, smallest = [], torch.Tensor.min
    monkeypatch.setattr(torch.Tensor, "min", lambda *given, **named: calls.append(1) or smallest(*given, **named))
    group_sizes(draw_profile(1024, 0), 1024, 64)
    assert len(calls) == 1024  # one for all events, where the last group ends at a position


@pytest.mark.parametrize(("masked", "steps"), [(9, 4), (7, 5), (8, 8), (3, 1), (4, 30), (128, 48)])
def test_balanced_groups_are_those_of_the_plan(masked, steps):
    plan = plan_sequence(torch.ones(1, masked, dtype=torch.bool), torch.arange(masked)[None], steps)
    assert plan[0].bincount().tolist() == balanced_sizes(masked, steps)


def test_a_profile_at_another_length_is_that_at_the_fraction_of_visible_tokens():
    profile = [8.0, 4.0, 2.0, 1.0]
    assert profile_of_length(profile, 4) == profile
    assert profile_of_length(profile, 8) == [8, 6, 4, 3, 2, 1.5, 1, 1]
    assert profile_of_length(profile, 2) == [8, 2]
    assert profile_of_length([3.0], 3) == [3, 3, 3]


# ---------------------------------------------------------------------------------------------------------
# The estimate
# ---------------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_enumerated_profile_within_its_error():
    model, drawn = tiny_model(MASK + 1, LENGTH, "loglinear"), seeded(1)
    chosen = torch.multinomial(torch.rand(len(TEXTS), generator=drawn) ** 3, 400, True, generator=drawn).tolist()
    texts = {text: chosen.count(index) / len(chosen) for index, text in enumerate(TEXTS)}
    exact = torch.tensor(enumerated_profile(logits_by_canvas(model), texts))
    rows = []
    found = information_profile(model, [torch.tensor(TEXTS[index]) for index in chosen], passes=16, report=rows.append)
    assert sum(rows) == 400 * 16
    falls = bool((exact.diff() < 0).all())
    errors = (torch.tensor(found.nats) - exact) / torch.tensor(found.standard_errors)
    assert not falls or errors.abs().max() < 4
    assert falls
    assert max(found.standard_errors) < 0.05
    assert (errors.abs() - 0.1 / torch.tensor(found.standard_errors)).max() < 0  # an error of 0.1 nats does not pass


def test_the_estimate_depends_on_the_seed_and_not_on_the_batch():
    model = random_model(vocab_size=30, max_position_embeddings=6)
    texts = torch.randint(29, (12, 6), generator=seeded(2))
    first, again, other = (
        information_profile(model, texts, passes=4, batch_size=size, seed=seed)
        for size, seed in ((32, 0), (5, 0), (32, 1))
    )
    assert first.nats == pytest.approx(again.nats, abs=1e-5)
    assert first.nats != pytest.approx(other.nats, abs=1e-5)


def test_a_curve_without_noise_is_found_and_noise_never_makes_one_rise():
    visible = torch.arange(50).repeat(2)
    curve = 3 + 2 / (1 + torch.arange(50.0)).double()
    found, errors = falling_curve(visible, curve[visible], 50)
    assert found == pytest.approx(curve.tolist())
    assert max(errors) < 1e-12
    noisy = curve[visible] + torch.randn(100, generator=seeded(3), dtype=torch.float64)
    found, errors = falling_curve(visible, noisy, 50)
    assert all(before >= after >= 0 for before, after in itertools.pairwise(found))
    assert min(errors) > 0


def test_the_errors_of_a_curve_are_those_of_its_noise():
    curve = 6 - 0.05 * torch.arange(64).double()
    visible = torch.arange(64).repeat(30)
    off = []
    for seed in range(100):
        noise = torch.randn(len(visible), generator=seeded(seed), dtype=torch.float64) / (64 - visible).sqrt()
        found, errors = falling_curve(visible, curve[visible] + noise, 64)
        off.append((found[20] - float(curve[20])) / errors[20])
    spread = float(torch.tensor(off).square().mean().sqrt())
    assert 0.6 < spread < 1.5


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([[1, 2, 0]], {}, "at least two texts"),
        ([[1, 2, 0], [1, 2]], {}, "2 to 3 tokens; a profile needs texts of one length"),
        ([[1, 2, 0]] * 2, {"passes": 2}, "passes=2 of 2 sequences are 4 rows .* passes >= 3"),
        ([[1, 2, 0]] * 2, {"passes": 0}, "passes=0 must be"),
        ([[1, 2, 0]] * 2, {"batch_size": 0}, "batch_size=0 must be"),
        ([[1, 2, 99]] * 2, {}, r"sequences\[0\] holds 99"),
    ],
)
def test_texts_without_a_profile_are_refused(texts, settings, message):
    with pytest.raises(ValueError, match=message):
        information_profile(tiny_model(4, 3, "loglinear"), texts, **settings)


# ---------------------------------------------------------------------------------------------------------
# generate(schedule="profile")
# ---------------------------------------------------------------------------------------------------------

STEEP = [3.0, 1.0, 0.5]  # one token, then two
SCHEDULE = {"schedule": "profile", "information_profile": STEEP, "steps": 2}


def test_samples_in_balanced_groups_do_not_pass_for_those_of_the_profile():
    planted = {"schedule": None, "information_profile": None}
    assert p_value(table_network(), BY_NAME["profile-2"]) > ACCEPTED
    assert p_value(table_network(), BY_NAME["profile-2"], sampled=planted) < REFUSED


def test_alone_it_means_ordered_in_random_order():
    text = table_network().generate(**SCHEDULE, length=LENGTH, num_return_sequences=20_000, generator=seeded(1))
    joint = joint_law(logits_by_canvas(table_network()), FREE, ordered_plans("random", [0, 1, 2], 2, STEEP))
    assert goodness_of_fit(text, marginal(joint, LENGTH)) > ACCEPTED


def sizes_of(output) -> list[list[int]]:
    return [row[row >= 0].bincount().tolist() for row in output.reveal_step]


def write(**settings):
    return FlatNetwork(4, 12).generate(**settings, generator=seeded(), return_dict_in_generate=True)


def test_each_row_has_the_groups_of_its_own_length_and_masks():
    profile, mask = draw_profile(12, 3), 3
    ids = torch.full((3, 12), mask)
    ids[0, :5], ids[1, :2], seen = 1, 0, torch.ones(3, 12)
    seen[1, :2] = 0
    output = write(input_ids=ids, attention_mask=seen, schedule="profile", information_profile=profile, steps=4)
    assert sizes_of(output) == [
        group_sizes(profile, 7, 4),
        group_sizes(profile_of_length(profile, 10), 10, 4),
        group_sizes(profile, 12, 4),
    ]
    assert output.num_function_evaluations.tolist() == [4, 4, 4]


@pytest.mark.parametrize("steps", [None, 12, 40])
def test_without_fewer_steps_than_masks_each_event_reveals_one(steps):
    assert sizes_of(write(schedule="profile", information_profile=STEEP, steps=steps)) == [[1] * 12]


@pytest.mark.parametrize(
    ("saved", "called", "expected"),
    [
        ({"schedule": "profile"}, {}, [1, 2]),
        ({"schedule": "profile"}, {"method": "ordered"}, [2, 1]),
        ({"schedule": "profile"}, {"method": "ordered", "order": "random"}, [2, 1]),
        ({"schedule": "profile"}, {"method": "ordered", "order": "confidence"}, [2, 1]),
        ({"schedule": "profile"}, {"generation_config": {"method": "ordered"}}, [2, 1]),
        ({"schedule": "profile", "steps": 1}, {"steps": 2}, [1, 2]),
        ({"method": "ordered", "order": "backward"}, {"schedule": "profile"}, [1, 2]),
        ({"method": "euler"}, {"schedule": "profile"}, [1, 2]),
        ({"method": "first_hitting"}, {"schedule": "profile", "method": "ordered", "order": "random"}, [1, 2]),
        ({"method": "ordered", "entropy_bound": 3.0}, {"schedule": "profile"}, [1, 2]),
    ],
    ids=str,
)
def test_what_is_named_nearer_to_the_call_says_what_is_revealed_when(saved, called, expected):
    network = FlatNetwork(4, LENGTH)
    network.generation_config = RaddGenerationConfig(**{"steps": 2, "information_profile": STEEP} | saved)
    assert sizes_of(network.generate(**called, return_dict_in_generate=True)) == [expected]


@pytest.mark.parametrize("method", ["tweedie", "euler", "first_hitting"])
def test_a_saved_schedule_leaves_a_call_that_names_a_method_as_it_is(method):
    network, plain = FlatNetwork(4, LENGTH), FlatNetwork(4, LENGTH)
    network.generation_config = RaddGenerationConfig(schedule="profile", information_profile=STEEP)
    assert torch.equal(*(each.generate(method=method, seed=1) for each in (network, plain)))


def test_a_method_alone_has_its_own_order_where_a_schedule_is_saved():
    network = FlatNetwork(4, LENGTH)
    network.generation_config = RaddGenerationConfig(schedule="profile", information_profile=STEEP)
    output = network.generate(method="ordered", return_dict_in_generate=True)
    assert output.reveal_step.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tweedie"}, "method='tweedie' and schedule='profile' both say"),
        ({"method": "euler"}, "method='euler' and schedule='profile' both say"),
        ({"method": "first_hitting", "steps": None}, "method='first_hitting' and schedule='profile' both say"),
        ({"method": "ordered", "order": "forward"}, "order='forward' and schedule='profile' both say"),
        ({"order": [2, 0, 1]}, r"order=\[2, 0, 1\] and schedule='profile' both say"),
        ({"order": "margin"}, "order='margin' and schedule='profile' both say"),
        ({"entropy_bound": 0.1, "steps": None}, "entropy_bound=0.1 and schedule='profile' both say"),
        ({"use_cache": False}, "use_cache=False evaluates the empty steps of a grid"),
        ({"information_profile": None}, "needs an information_profile, .* `radd profile MODEL --dataset TEXT`"),
        ({"information_profile": []}, r"information_profile=\[\] must be a list of nats"),
        ({"information_profile": [1.0, math.nan]}, r"information_profile\[1\]=nan must be a finite number"),
        ({"information_profile": [1.0, -0.5]}, r"information_profile\[1\]=-0.5 must be a finite number of nats, at l"),
        ({"information_profile": [1, True]}, r"information_profile\[1\]=True must be a finite number"),
        ({"information_profile": [3, 1, 2]}, r"information_profile\[2\]=2 must be at most the 1 before it"),
        ({"schedule": "cosine"}, r"schedule='cosine' must be one of \('profile',\)"),
        ({"length": 40_000, "steps": 30}, "steps=30 for 40000 masks: .* pass steps <= 5"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_schedule_that_cannot_be_is_refused_before_anything_is_drawn(settings, message):
    generator, network = seeded(3), FlatNetwork(4, LENGTH)
    before = generator.get_state()
    with pytest.raises(ValueError, match=message):
        network.generate(**SCHEDULE | settings, generator=generator)
    assert torch.equal(before, generator.get_state())
    assert network.rows_evaluated == []


def test_a_profile_is_saved_with_the_model_and_travels(tmp_path):
    model = random_model(vocab_size=11, max_position_embeddings=LENGTH)
    model.generation_config = RaddGenerationConfig(information_profile=torch.tensor(STEEP))
    model.save_pretrained(tmp_path)
    loaded = RaddForMaskedLM.from_pretrained(tmp_path)
    assert loaded.generation_config.information_profile == STEEP
    assert sizes_of(loaded.generate(schedule="profile", steps=2, return_dict_in_generate=True)) == [[1, 2]]
    (tmp_path / "generation_config.json").write_text('{"information_profile": [1.0, 2.0]}')
    with pytest.raises(ValueError, match=r"generation_config\.json: information_profile\[1\]=2.0 must be at most"):
        RaddForMaskedLM.from_pretrained(tmp_path)


def test_time_that_runs_out_and_ends_of_texts_cut_a_schedule_short(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    settings = {"schedule": "profile", "information_profile": draw_profile(12, 3), "steps": 6, "max_time": 2.5}
    sizes = sizes_of(write(**settings))[0]
    planned = group_sizes(draw_profile(12, 3), 12, 6)
    assert sizes[:-1] == planned[: len(sizes) - 1]
    assert sum(sizes) == 12
    assert len(sizes) < 6
