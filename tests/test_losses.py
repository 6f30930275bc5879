"""The four objectives: equal to the authors' numbers for a fixed mask, and to their derived expectations."""

from itertools import permutations, product
from math import comb

import pytest
import torch
from safetensors.torch import load_file
from scipy.integrate import quad
from scipy.special import beta

from radd_hf.kernels_radd import compile_trunk
from radd_hf.losses import (
    FIRST_TIME,
    LOSS_TYPES,
    T_LOSSES,
    Masks,
    draw_masks,
    draw_step_masks,
    loss_weights,
    masks_at,
    stratified,
)
from radd_hf.noise_radd import GeometricNoise, LogLinearNoise
from support.toys import random_model

NOISES = {"loglinear": LogLinearNoise(), "geometric": GeometricNoise()}
L = 3


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_each_loss_is_the_authors_for_their_fixed_mask(golden, golden_model, loss_type, noise, compiled):
    if compiled:
        for module in golden_model.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        compile_trunk(golden_model.model, "aot_eager")
    g = load_file(golden / "losses.safetensors")
    masked = g["xt"] == 96
    level = {"lambda_DCE": g["lambda"], "k_DCE": g["k"]}.get(loss_type, g[f"{noise}.t"]).double()  # (B,)
    weight, offset = loss_weights(loss_type, level, masked.sum(dim=1), g["x0"].shape[1], NOISES[noise])
    outputs = golden_model(g["xt"], labels=g["x0"].masked_fill(~masked, -100), loss_weights=weight)
    expected = g[f"{noise}.{loss_type}"] if loss_type in T_LOSSES else g[loss_type]
    torch.testing.assert_close(weight * outputs.sequence_nll + offset, expected.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(outputs.loss, (weight * outputs.sequence_nll).mean())


@pytest.fixture(scope="module")
def masked_nll() -> dict[tuple[bool, ...], float]:
    """S for each of the 2^L masks of one text, by the enumerable toy."""
    model, x0 = random_model(vocab_size=3, max_position_embeddings=L), torch.tensor([[0, 1, 1]])
    table = {}
    for mask in product((False, True), repeat=L):
        masked = torch.tensor([mask])
        with torch.no_grad():
            outputs = model(x0.masked_fill(masked, 2), labels=x0.masked_fill(~masked, -100))
        table[mask] = outputs.sequence_nll.item()
    return table


def any_order_nll(masked_nll) -> float:
    """Mean over the L! orders of the sum of -log p(x_i | those before it): the chain rule written out.

    A single term -log p(x_i | visible) does not stand in the table, but over all orders each S(mask) / |mask| is
    the mean of its terms, so the sum over orders is a sum over the masks along them.
    """
    orders = list(permutations(range(L)))
    total = 0.0
    for order in orders:
        for hidden_from in range(L):
            mask = tuple(position in order[hidden_from:] for position in range(L))
            total += masked_nll[mask] / sum(mask)
    return total / len(orders)


def test_lambda_and_k_losses_are_the_any_order_likelihood_in_expectation(masked_nll):
    exact = any_order_nll(masked_nll)
    k_dce = (
        sum(
            s
            / comb(L, sum(mask))
            * loss_weights("k_DCE", torch.tensor([float(sum(mask))]), None, L, NOISES["loglinear"])[0]
            for mask, s in masked_nll.items()
            if any(mask)
        )
        / L
    )
    assert k_dce.item() == pytest.approx(exact, rel=1e-6)

    def at(level: float) -> float:
        weight, _ = loss_weights("lambda_DCE", torch.tensor([level], dtype=torch.float64), None, L, NOISES["loglinear"])
        law = {mask: level ** sum(mask) * (1 - level) ** (L - sum(mask)) for mask in masked_nll}
        return weight.item() * sum(law[mask] * s for mask, s in masked_nll.items())

    assert quad(at, 0, 1, epsabs=1e-10)[0] == pytest.approx(exact, rel=1e-6)
    closed_form = sum(s * beta(sum(mask), L - sum(mask) + 1) for mask, s in masked_nll.items() if any(mask))
    assert closed_form == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_t_losses_are_the_integral_from_their_first_time_on(masked_nll, noise):
    def at(t: float) -> float:
        level = torch.tensor([t], dtype=torch.float64)
        weight, _ = loss_weights("t_DSE", level, torch.tensor([0]), L, noise)
        rate = -torch.expm1(-noise.sigma(level)).item()
        return weight.item() * sum(rate ** sum(m) * (1 - rate) ** (L - sum(m)) * s for m, s in masked_nll.items())

    def any_order_at(rate: float) -> float:
        return sum(rate ** (sum(m) - 1) * (1 - rate) ** (L - sum(m)) * s for m, s in masked_nll.items() if any(m))

    expectation = quad(at, FIRST_TIME, 1, epsabs=1e-10, limit=200)[0] / (1 - FIRST_TIME)
    first, last = (-torch.expm1(-noise.sigma(torch.tensor(t, dtype=torch.float64))).item() for t in (FIRST_TIME, 1.0))
    integral = quad(any_order_at, first, last, epsabs=1e-10)[0]
    assert expectation == pytest.approx(integral / (1 - FIRST_TIME), rel=1e-6)
    assert integral / (1 - FIRST_TIME) == pytest.approx(any_order_nll(masked_nll), rel=3e-3)


def test_the_offset_of_t_dce_has_no_mean_over_the_schedule():
    noise = NOISES["loglinear"]

    def at(t: float) -> float:
        level = torch.tensor([t], dtype=torch.float64)
        expected_masks = -torch.expm1(-noise.sigma(level)) * L
        return loss_weights("t_DCE", level, expected_masks, L, noise)[1].item()

    # L (a log a + (1 - a) log(1 - a)) between the ends a of the mask probability; at both ends about 0.008 L
    assert abs(quad(at, FIRST_TIME, 1, epsabs=1e-10, limit=200)[0]) < 1e-4 * L


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_drawn_masks_have_the_expectation_of_their_loss(masked_nll, loss_type):
    """Law and weight together, as training uses them: 400,000 rows, five standard errors."""
    masks = draw_masks(loss_type, 400_000, L, NOISES["loglinear"], torch.Generator().manual_seed(1))
    code = (masks.masked * torch.tensor([4, 2, 1])).sum(dim=1)  # (B,) index into the masks in product order
    values = masks.weight * torch.tensor(list(masked_nll.values()))[code]  # (B,)
    exact, error = any_order_nll(masked_nll), values.std() / len(values) ** 0.5
    tolerance = 3e-3 * exact if loss_type in T_LOSSES else 0  # what the t losses leave out below their first time
    assert abs(values.mean() - exact) < 5 * error + tolerance


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_levels_are_stratified_over_the_batch_and_uniform_in_each_row(loss_type):
    generator, noise, length = torch.Generator().manual_seed(2), NOISES["loglinear"], 64
    first_rows = []
    for _ in range(200):
        masks = draw_masks(loss_type, 8, length, noise, generator)
        level = {
            "lambda_DCE": lambda weight: 1 / weight,
            "k_DCE": lambda weight: length / weight / length,
        }.get(loss_type, lambda weight: 1 / weight)(masks.weight)  # t up to a factor near 1 under log-linear noise
        assert sorted((level.clamp(max=1) * 8).ceil().clamp(min=1).tolist()) == pytest.approx(list(range(1, 9)), abs=1)
        first_rows.append(level[0].item())
    assert abs(torch.tensor(first_rows).mean() - 0.5) < 5 * 0.29 / 200**0.5


def test_k_dce_masks_exactly_k_tokens():
    masks = draw_masks("k_DCE", 256, 32, NOISES["loglinear"], torch.Generator().manual_seed(3))
    torch.testing.assert_close(masks.masked.sum(dim=1).float(), 32 / masks.weight)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_masks_of_a_step_do_not_depend_on_who_draws_them(loss_type):
    """However a step is divided among processes and forwards, the union is one stratified sample."""

    def draw(rows: range, step: int = 5) -> Masks:
        lengths = torch.full((len(rows),), 16)
        return draw_step_masks(loss_type, 0, step, rows, 12, lengths, 16, NOISES["loglinear"])

    whole, parts = draw(range(12)), [draw(range(first, first + 3)) for first in (0, 3, 6, 9)]
    for name in ("masked", "weight", "offset"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert not torch.equal(draw(range(12), step=6).masked, whole.masked)
    if loss_type == "lambda_DCE":
        strata = ((1 - 1 / whole.weight.double()) * 12).floor().clamp(min=0)
        assert sorted(strata.tolist()) == list(range(12))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_is_never_masked_and_a_padded_row_has_the_law_of_its_own_length(masked_nll, loss_type):
    """400,000 rows of L tokens and two places of padding have the expectation of rows of L tokens."""
    generator, rows = torch.Generator().manual_seed(4), 400_000
    uniform = torch.rand(rows, L + 2, generator=generator, dtype=torch.float64)
    masks = masks_at(loss_type, stratified(rows, generator), uniform, NOISES["loglinear"], torch.full((rows,), L))
    assert not masks.masked[:, L:].any()
    code = (masks.masked[:, :L] * torch.tensor([4, 2, 1])).sum(dim=1)
    values = masks.weight * torch.tensor(list(masked_nll.values()))[code]  # (B,)
    exact, error = any_order_nll(masked_nll), values.std() / len(values) ** 0.5
    tolerance = 3e-3 * exact if loss_type in T_LOSSES else 0
    assert abs(values.mean() - exact) < 5 * error + tolerance


def test_an_unknown_loss_is_refused_by_name():
    with pytest.raises(ValueError, match="loss_type='elbo' must be one of"):
        draw_masks("elbo", 4, 8, NOISES["loglinear"], torch.Generator())


@pytest.mark.parametrize("size", [0, -1, True, 2.0, None])
def test_masks_of_no_rows_or_no_tokens_are_refused_by_name(size):
    for name, sizes in (("batch_size", (size, 8)), ("length", (4, size))):
        with pytest.raises(ValueError, match=f"{name}={size} must be an integer of at least 1"):
            draw_masks("k_DCE", *sizes, NOISES["loglinear"], torch.Generator())
