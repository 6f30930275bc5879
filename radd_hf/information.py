# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Estimates the information profile: how uncertain the next token is, by the number of tokens that are visible.

    h(v) = E[-log p(x_i | v visible tokens)]        in nats; the mean is over texts, visible tokens and other tokens i

A nat is the unit of natural logarithms. The mean over all masked tokens of one random mask is an unbiased estimate of
h(v). The profile of a distribution of texts under its own conditionals never rises (arXiv:2510.25544). So the estimate
is made a falling curve, too. From the profile, `plan_radd.py` computes the error of drawing tokens together, and the
best sizes of groups.

Shapes: S sequences, L length.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .kernels_radd import evaluation_mode, packed_weights
from .likelihood import check_batch_size, check_integer_seed, check_texts, config_of, nats_of_tokens
from .randomness_radd import stream_seed
from .ranges import check_count

# Fewest rows of the network for each number of visible tokens: two rows give an error.
ROWS_OF_A_COUNT = 2
# A point of the curve must lie below the one before it by this many standard errors.
DISTINCT = 3.0


@dataclass(frozen=True)
class InformationProfile:
    """Holds h(v) at v = 0 .. L - 1 visible tokens, in nats, and standard errors for the draw of texts and masks."""

    nats: list[float]
    standard_errors: list[float]
    n_sequences: int
    passes: int


def information_profile(
    model: Any,
    sequences: Sequence[Tensor],
    *,
    passes: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    report: Callable[[int], object] = lambda rows: None,
) -> InformationProfile:
    """Estimates the information profile of texts under a model.

    Args:
        sequences: ids (L,) of at least two texts of one length.
        passes: masks drawn for each text; with S texts there are S x passes / L rows for each number of visible tokens.
        batch_size: rows of a forward pass.
        seed: the seed of the masks.
        report: called after each forward pass with the number of its rows.

    Raises:
        ValueError: if a sequence is not a text, if there are fewer than two or their lengths differ, and if some number
            of visible tokens would have fewer than two rows.
    """
    passes, seed = check_count("passes", passes), check_integer_seed(seed)
    check_batch_size(batch_size)
    sequences = check_texts(config_of(model), sequences).sequences
    check_lengths(sequences, passes)
    x0 = torch.stack(sequences)  # (S, L)
    count, length = x0.shape
    visible = torch.arange(passes * count).mul(length).div(passes * count, rounding_mode="floor")  # (passes S,)
    visible = visible.view(passes, count)  # rises from pass to pass, so each text gets all levels
    nats = torch.zeros(passes, count, dtype=torch.float64)
    with packed_weights(passes * math.ceil(count / batch_size)), evaluation_mode(model):
        for number in range(passes):
            generator = torch.Generator().manual_seed(stream_seed(seed, "information profile", number))
            visible[number] = visible[number, torch.randperm(count, generator=generator)]
            place = torch.rand(count, length, generator=generator, dtype=torch.float64).argsort(dim=1).argsort(dim=1)
            masked = place >= visible[number, :, None]  # (S, L)
            parts = []
            for part in nats_of_tokens(model, x0, masked, masked, batch_size):  # (rows, L) each
                parts.append(part.sum(dim=1))
                report(len(part))
            nats[number] = torch.cat(parts) / masked.sum(dim=1)
    curve, errors = falling_curve(visible.flatten(), nats.flatten(), length)
    return InformationProfile(curve, errors, count, passes)


def check_lengths(sequences: Sequence[Tensor], passes: int) -> None:
    """Raises a ValueError unless there are enough texts for a profile, all of one length."""
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) > 1:
        raise ValueError(
            f"sequences have {min(lengths)} to {max(lengths)} tokens; a profile needs texts of one length."
        )
    (length,) = lengths
    if len(sequences) < 2:
        raise ValueError("sequences must hold at least two texts, since their differences give the error; it has one.")
    if passes * len(sequences) < ROWS_OF_A_COUNT * length:
        raise ValueError(
            f"passes={passes} of {len(sequences)} sequences are {passes * len(sequences)} rows for the {length} "
            f"numbers of visible tokens, and each needs at least {ROWS_OF_A_COUNT}: pass "
            f"passes >= {math.ceil(ROWS_OF_A_COUNT * length / len(sequences))}."
        )


def falling_curve(visible: Tensor, nats: Tensor, length: int) -> tuple[list[float], list[float]]:
    """Fits a falling curve to means over masked tokens; returns it and its standard errors, L numbers each.

    Neighbouring numbers of visible tokens are pooled until each pool lies below the one before it by `DISTINCT`
    standard errors of the difference. Otherwise the best groups would follow steps that are only noise. Lines join the
    centres of the pools. The first and the last line continue to the ends.

    Args:
        visible: (rows,) number of visible tokens of each row; each of 0 .. L - 1 must occur at least twice.
        nats: (rows,) float64, mean over the masked tokens of the row.
    """
    weight = (length - visible).double()  # (rows,) masked tokens

    def add_up(values: Tensor) -> Tensor:
        """Adds up values of rows by their number of visible tokens: (rows,) -> (L,)."""
        return values.new_zeros(length).index_add_(0, visible, values)

    mass, total, rows = add_up(weight), add_up(weight * nats), add_up(torch.ones_like(weight))
    off = weight * (nats - (total / mass)[visible])  # (rows,)
    variance = add_up(off.square()) * rows / (rows - 1)  # (L,) of `total`
    counts = torch.arange(length, dtype=torch.float64)
    pools = list[Tensor]()  # each has: mass, mass x visible tokens, total, variance of the total
    for pool in torch.stack((mass, mass * counts, total, variance), dim=1):
        pools.append(pool)
        while len(pools) > 1 and not _lies_below(pools[-1], pools[-2]):
            pools[-2:] = [pools[-2] + pools[-1]]
    mass, centre, mean, error = torch.stack(pools).T  # (pools,) each
    centre, mean, error = centre / mass, mean / mass, error.sqrt() / mass
    if len(pools) > 1:  # else the curve is level
        fall = mean.diff() / centre.diff()  # (pools - 1,)
        first, last = mean[0] - fall[0] * centre[0], mean[-1] + fall[-1] * (length - 1 - centre[-1])
        mean = torch.cat((first[None], mean, last.clamp(min=0)[None]))
        centre, error = pad(pad(centre, (1, 0)), (0, 1), value=length - 1), error[[0, *range(len(pools)), -1]]
    return np.interp(counts, centre, mean).tolist(), np.interp(counts, centre, error).tolist()


def _lies_below(pool: Tensor, before: Tensor) -> bool:
    """Tells whether the mean of a pool lies below that of the pool before it by more than noise."""
    (mass, _, total, variance), (mass_before, _, total_before, variance_before) = pool.tolist(), before.tolist()
    error = math.sqrt(variance / mass**2 + variance_before / mass_before**2)
    return total_before / mass_before - total / mass > DISTINCT * error


__all__ = ["InformationProfile", "falling_curve", "information_profile"]
