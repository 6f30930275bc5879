# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Shows RADD on a language of 27 texts, where every expectation is a sum that can be written out.

    python docs/how_radd_works.py

The page how_radd_works.md shows these lines and what they print. The network has the library's architecture and random
weights, so no statement depends on good training. Lines are short, because the page shows them beside the equations.

Shapes: C canvases, L length, V vocabulary with the mask, M ways to mask a text, N noise levels, R rows.
"""

import math
from collections import Counter
from itertools import permutations, product

import numpy as np
import torch

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.likelihood import exact_likelihood
from radd_hf.losses import FIRST_TIME, LOSS_TYPES, T_LOSSES, loss_weights
from radd_hf.noise_radd import GeometricNoise, LogLinearNoise, expected_evaluations, reveal_probabilities

LETTERS, MASK = "abc_", 3  # "_" is the mask
LENGTH = 3
TEXT = "cab"
NOISES = {"loglinear": LogLinearNoise(), "geometric": GeometricNoise()}
ORDERS = list(permutations(range(LENGTH)))  # forward first, backward last
SAMPLES = 20_000
NODES, SHARES = np.polynomial.legendre.leggauss(200)  # exact for polynomials, as most of these integrands are


def ids(text):
    return torch.tensor([LETTERS.index(letter) for letter in text])


# ---------------------------------------------------------------------------------------------------------
# 1. The network
# ---------------------------------------------------------------------------------------------------------


def make_network():
    config = RaddConfig(
        vocab_size=len(LETTERS),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    model = RaddForMaskedLM(config).double().eval()
    generator = torch.Generator().manual_seed(9)
    for weights in model.parameters():
        weights.data.normal_(generator=generator)
    return model


@torch.no_grad()
def tabulate(model):
    """Returns {canvas: distributions at its places, (L, V)}."""
    canvases = ["".join(c) for c in product(LETTERS, repeat=LENGTH)]
    batch = torch.stack([ids(c) for c in canvases])  # (C, L)
    p = model(input_ids=batch).logits.softmax(-1)  # (C, L, V)
    return dict(zip(canvases, p.tolist(), strict=True))


def show_network(table):
    texts = sum("_" not in canvas for canvas in table)
    print(f"{texts} texts, {len(table)} canvases; distributions at the masked positions of some:")
    print("canvas  position       a       b       c       _")
    for canvas in ("___", "__b", "c__", "c_b"):
        for position in range(LENGTH):
            if canvas[position] == "_":
                shown = "".join(f"{p:8.4f}" for p in table[canvas][position])
                print(f"{canvas:<8}{position + 1:>8}{shown}")


# ---------------------------------------------------------------------------------------------------------
# 2. Noise
# ---------------------------------------------------------------------------------------------------------


def mask_probability(noise, t):
    return -torch.expm1(-noise.sigma(t))  # 1 - exp(-sigma)


def show_noise():
    print("t       masked, loglinear   masked, geometric")
    for t in torch.linspace(0, 1, 5, dtype=torch.float64):
        loglinear, geometric = (mask_probability(noise, t).item() for noise in NOISES.values())
        print(f"{t:<8.2f}{loglinear:>17.4f}{geometric:>20.4f}")


# ---------------------------------------------------------------------------------------------------------
# 3. Training: four losses with one mean
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def masked_nll(model):
    """Returns the number of masks (M,) and S (M,)."""
    choices = [torch.tensor([True, False])] * LENGTH
    masked = torch.cartesian_prod(*choices)  # (M, L)
    x0 = ids(TEXT).expand(len(masked), -1)
    out = model(
        input_ids=x0.masked_fill(masked, MASK),
        labels=x0.masked_fill(~masked, -100),
    )
    return masked.sum(dim=1), out.sequence_nll.double()


def show_masked_nll(model):
    _, s = masked_nll(model)
    print(f"canvas of {TEXT}       S")
    for mask, nats in zip(product((True, False), repeat=LENGTH), s.tolist(), strict=True):
        canvas = "".join("_" if hidden else letter for letter, hidden in zip(TEXT, mask, strict=True))
        print(f"{canvas:<13}{nats:>8.4f}")


def levels(low, high):
    """Returns nodes for a mean over (low, high), (N, 1), and their weights."""
    node, share = torch.tensor(NODES), torch.tensor(SHARES) / 2
    level = (low + high) / 2 + (high - low) / 2 * node
    return level[:, None], share[:, None]


def each_token(rate, n_masked):
    """Returns (N, M) P(mask) if all tokens have this rate."""
    return rate**n_masked * (1 - rate) ** (LENGTH - n_masked)


def subset(k, n_masked):
    """Returns (N, M) P(mask) of a random subset of k."""
    subsets = [math.comb(LENGTH, n) for n in n_masked.tolist()]
    return (n_masked == k) / torch.tensor(subsets)


def expected_loss(model, loss, noise):
    """Computes the mean of w S and the mean of the offset."""
    n_masked, s = masked_nll(model)
    if loss == "k_DCE":
        level = torch.arange(1.0, LENGTH + 1).double()[:, None]
        share = torch.full_like(level, 1 / LENGTH)
        p = subset(level, n_masked)
    elif loss == "lambda_DCE":
        level, share = levels(0, 1)
        p = each_token(level, n_masked)
    else:
        level, share = levels(FIRST_TIME, 1)
        rate = mask_probability(noise, level)
        p = each_token(rate, n_masked)
    w, offset = loss_weights(loss, level, n_masked, LENGTH, noise)
    mean = (share * p * w * s).sum()
    return mean.item(), (share * p * offset).sum().item()


def left_out(model, noise):
    """Integrates over the lambda that no t reaches."""
    n_masked, s = masked_nll(model)
    ends = torch.tensor([FIRST_TIME, 1], dtype=torch.float64)
    first, last = mask_probability(noise, ends).tolist()
    total = 0.0
    for low, high in ((0, first), (last, 1)):
        rate, share = levels(low, high)
        mean = (share * each_token(rate, n_masked) * s / rate).sum()
        total += (high - low) * mean.item()
    return total


def likelihood_in_every_order(model):
    """Computes -log p of the text in each order, in nats."""
    x0 = [ids(TEXT)]
    orders = [torch.tensor(order) for order in ORDERS]
    return [exact_likelihood(model, x0, order).item() for order in orders]


def show_losses(model):
    nats = likelihood_in_every_order(model)
    print(f"order      -log p({TEXT})")
    for order, value in zip(ORDERS, nats, strict=True):
        print(f"{', '.join(str(place + 1) for place in order):<9}{value:>12.4f}")
    any_order = sum(nats) / len(nats)
    print(f"{'mean':<9}{any_order:>12.4f}\n")
    print("loss        noise       mean of w S   and what t leaves out   mean of the offset")
    for loss_type, (name, noise) in product(LOSS_TYPES, NOISES.items()):
        timed = loss_type in T_LOSSES
        if not timed and name != "loglinear":
            continue  # k and lambda know no time
        mean, offset = expected_loss(model, loss_type, noise)
        whole = (1 - FIRST_TIME) * mean + left_out(model, noise) if timed else mean
        name = name if timed else ""
        print(f"{loss_type:<12}{name:<12}{mean:>11.4f}{whole:>24.4f}{abs(offset):>21.4f}")
        assert math.isclose(whole, any_order, rel_tol=1e-6), (loss_type, whole, any_order)


# ---------------------------------------------------------------------------------------------------------
# 4. Sampling: when a token is revealed
# ---------------------------------------------------------------------------------------------------------


def grid_plans(noise, method, steps):
    """Returns {event of each position: probability}."""
    r = reveal_probabilities(noise, method, steps)  # (n,)
    masked = torch.cat([r.new_ones(1), (1 - r).cumprod(0)[:-1]])
    q = (r * masked).tolist()
    plans = Counter()
    for plan in product(range(steps), repeat=LENGTH):
        plans[events(plan)] += math.prod(q[step] for step in plan)
    return plans


def events(plan):
    """Numbers the steps that reveal something: 0, 1, ..."""
    used = sorted(set(plan))
    return tuple(used.index(step) for step in plan)


def order_plans(orders):
    """Plans one position an event, in one of the orders."""
    plans = Counter()
    for order in orders:
        plan = tuple(order.index(place) for place in range(LENGTH))
        plans[plan] += 1 / len(orders)
    return plans


# ---------------------------------------------------------------------------------------------------------
# 5. Sampling: which token is revealed
# ---------------------------------------------------------------------------------------------------------


def text_distribution(table, plans, canvas="_" * LENGTH):
    """Sums over all plans and draws: {text: probability}."""
    total = Counter()
    for plan, chance in plans.items():
        drafts = {canvas: chance}
        for event in sorted(set(plan)):
            drafts = reveal(table, drafts, plan, event)
        total.update(drafts)
    return total


def reveal(table, drafts, plan, event):
    """Draws the tokens of one event, each given the draft."""
    after = Counter()
    for draft, chance in drafts.items():
        places = [place for place in range(LENGTH) if plan[place] == event]
        places = [place for place in places if draft[place] == "_"]
        for drawn in product(range(MASK), repeat=len(places)):
            text, p = list(draft), chance
            for place, letter in zip(places, drawn, strict=True):
                text[place] = LETTERS[letter]
                p *= table[draft][place][letter]
            after["".join(text)] += p
    return after


def sample(model, rows=SAMPLES, **settings):
    return model.generate(
        num_return_sequences=rows,
        generator=torch.Generator().manual_seed(1),
        return_dict_in_generate=True,
        **settings,
    )


def p_value(sequences, exact):
    """Returns the chance that a correct sampler is as far off."""
    rows = sequences.tolist()
    counts = Counter("".join(LETTERS[i] for i in row) for row in rows)
    possible = {text: p * len(rows) for text, p in exact.items() if p > 0}
    assert set(counts) <= set(possible)
    terms = [(counts[text] - n) ** 2 / n for text, n in possible.items()]
    halves = torch.tensor([len(terms) - 1, sum(terms)]).double() / 2
    return torch.special.gammaincc(*halves).item()  # chi-square


def show_samplers(model, table):
    print(f"{SAMPLES:,} samples of each method\n")
    print(f"method, steps or order, noise         P({TEXT})   sampled   p-value")
    for method, setting, noise in [
        ("tweedie", 1, "loglinear"),
        ("tweedie", 4, "loglinear"),
        ("tweedie", 8, "geometric"),
        ("euler", 4, "loglinear"),
        ("euler", 8, "geometric"),
        ("first_hitting", None, ""),
        ("ordered", "forward", ""),
        ("ordered", "backward", ""),
        ("ordered", "random", ""),
    ]:
        if noise:
            model.config.noise_type, settings = noise, {"steps": setting}
            plans = grid_plans(NOISES[noise], method, setting)
        else:
            settings = {"order": setting}
            plans = order_plans({"forward": ORDERS[:1], "backward": ORDERS[-1:]}.get(setting, ORDERS))
        exact = text_distribution(table, plans)
        sequences = sample(model, method=method, **settings).sequences
        share, p = (sequences == ids(TEXT)).all(dim=1).double().mean().item(), p_value(sequences, exact)
        name = f"{method:<14}{setting or '':<10}{noise:<12}"
        print(f"{name:<36}{exact[TEXT]:>8.4f}{share:>10.4f}{p:>10.2f}")
        assert p > 1e-3, name
    model.config.noise_type = "loglinear"


def show_given(model, table):
    canvas = "__b"
    exact = text_distribution(table, order_plans(ORDERS[:1]), canvas)
    sequences = sample(model, input_ids=ids(canvas), method="ordered").sequences
    share, p = (sequences == ids(TEXT)).all(dim=1).double().mean().item(), p_value(sequences, exact)
    print(f"given {canvas}, ordered forward: {len(exact)} texts are possible")
    print(f"P({TEXT}) {exact[TEXT]:.4f}, sampled {share:.4f}, p-value {p:.2f}")
    assert p > 1e-3


def show_steps(model, table):
    one_by_one = text_distribution(table, order_plans(ORDERS))
    any_order = sum(likelihood_in_every_order(model)) / len(ORDERS)
    print(f"any-order mean of -log p({TEXT})     {any_order:.4f}")
    print(f"-log P({TEXT}) of first_hitting      {-math.log(one_by_one[TEXT]):.4f}\n")
    print("steps   distance to first_hitting")
    for steps in (1, 2, 4, 8, 16, 32):
        grid = text_distribution(table, grid_plans(NOISES["loglinear"], "tweedie", steps))
        print(f"{steps:<8}{sum(abs(grid[text] - one_by_one[text]) for text in grid) / 2:>8.4f}")


# ---------------------------------------------------------------------------------------------------------
# 6. Network evaluations
# ---------------------------------------------------------------------------------------------------------


def mean_events(plans):
    return sum(p * len(set(plan)) for plan, p in plans.items())


def show_evaluations(model):
    print("steps   noise         enumerated   formula   measured   use_cache=False")
    for steps, (name, noise) in product((4, 16), NOISES.items()):
        model.config.noise_type = name
        enumerated = mean_events(grid_plans(noise, "tweedie", steps))
        formula = expected_evaluations(noise, "tweedie", steps, LENGTH)
        measured = sample(model, steps=steps).num_function_evaluations.double().mean()
        cached, every_step = (sample(model, 100, steps=steps, use_cache=use_cache) for use_cache in (True, False))
        assert torch.equal(cached.sequences, every_step.sequences)
        whole = every_step.num_function_evaluations.double().mean()
        print(f"{steps:<8}{name:<13}{enumerated:>11.4f}{formula:>10.4f}{measured:>11.4f}{whole:>18.0f}")
        assert math.isclose(enumerated, formula, rel_tol=1e-9)
    model.config.noise_type = "loglinear"


def main():
    model = make_network()
    table = tabulate(model)
    show_network(table)
    print()
    show_noise()
    print()
    show_masked_nll(model)
    print()
    show_losses(model)
    print()
    show_samplers(model, table)
    print()
    show_given(model, table)
    print()
    show_steps(model, table)
    print()
    show_evaluations(model)


if __name__ == "__main__":
    main()
