# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The four training objectives: one sum of cross-entropies, four ways to draw the mask, four weights.

Every objective of RADD is a weighted cross-entropy at the masked positions,

    loss = w S + offset,        S = sum over masked positions of -log p(x_i | visible tokens)     nats per sequence

They differ only in how the mask is drawn, in the weight w and in the offset. A nat is the unit of natural logarithms.
The equations are those of arXiv:2406.03736 (v4), with sigma = sigma(t) of the noise schedule (`noise_radd.py`):

    t_DSE       t ~ U[1e-3, 1], a token masked with probability 1 - e^-sigma    w = sigma' / (e^sigma - 1)    eq. (2.11)
    t_DCE       same mask, same w, offset sigma' n_masked log(e^sigma - 1) / (e^sigma - 1)                  eq. (3.5)
    lambda_DCE  lambda ~ U(0, 1], a token masked with probability lambda        w = 1 / lambda                eq. (3.6)
    k_DCE       k ~ U{1..L}, a uniform subset of k tokens masked                w = L / k                     eq. (C.20)

The expectation of lambda_DCE and of k_DCE is the negative log-likelihood of the text, averaged over all orders in which
its tokens can be generated (Theorem 2). The t losses are 1 / (1 - 1e-3) times its integral from t = 1e-3 on. The offset
does not depend on the network. Its mean over the whole schedule is zero. It adds noise to a logged value, so logs leave
it out.

The model computes S: `RaddForMaskedLM.forward` with `labels` and `loss_weights`. This file computes the rest.

Shapes: B batch, L length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise_radd import Noise
from .randomness_radd import stream_seed
from .settings_radd import is_integer, shortened

T_LOSSES = ("t_DSE", "t_DCE")
LOSS_TYPES = (*T_LOSSES, "lambda_DCE", "k_DCE")

# The t losses draw no time below this one: the weight divides by e^sigma - 1, which is zero at t = 0.
FIRST_TIME = 1e-3


@dataclass(frozen=True)
class Masks:
    """The masks of a batch and the weights of its loss.

    masked: (B, L) bool, True where a token is masked.
    weight: (B,) float32, w.
    offset: (B,) float32, nats per sequence; zero unless the loss is t_DCE.
    """

    masked: Tensor
    weight: Tensor
    offset: Tensor

    def apply(self, x0: Tensor, mask_token_id: int) -> dict[str, Tensor]:
        """Returns the arguments of the model's forward for the clean ids x0 (B, L), on the device of x0."""
        masked = self.masked.to(x0.device)
        return {
            "input_ids": x0.masked_fill(masked, mask_token_id),  # (B, L) x_t
            "labels": x0.masked_fill(~masked, -100),  # (B, L)
            "loss_weights": self.weight.to(x0.device),  # (B,)
        }


def draw_masks(loss_type: str, batch_size: int, length: int, noise: Noise, generator: torch.Generator) -> Masks:
    """Draws the masks of `loss_type` for B rows of L tokens, on the CPU.

    Each row has a level, which says how much of it is masked: t, lambda or k. The levels are [`stratified`] over the
    batch.

    Raises:
        ValueError: for an unknown loss, or if there are no rows or no tokens.
    """
    for name, size in (("batch_size", batch_size), ("length", length)):
        if not is_integer(size, 1):
            raise ValueError(f"{name}={shortened(size)} must be an integer of at least 1.")
    quantile = stratified(batch_size, generator)
    uniform = torch.rand(batch_size, length, generator=generator, dtype=torch.float64)
    return masks_at(loss_type, quantile, uniform, noise)


def draw_step_masks(
    loss_type: str, seed: int, step: int, rows: range, n_rows: int, lengths: Tensor, length: int, noise: Noise
) -> Masks:
    """Draws the masks of some rows of one optimizer step.

    Every process draws the levels of all `n_rows` rows of the step as one stratified sample, and the uniform numbers of
    all rows at once. So a row's mask is a function of (seed, step, index of the row in the step). The number of
    processes and gradient accumulation cannot change it.

    Args:
        rows: the rows to return, a range within 0 .. n_rows - 1.
        lengths: (B,) tokens of each returned row; its other places, up to L, are padding.
    """
    levels = torch.Generator().manual_seed(stream_seed(seed, "levels", step))
    quantile = stratified(n_rows, levels)[rows.start : rows.stop]  # (B,)
    tokens = torch.Generator().manual_seed(stream_seed(seed, "masks", step))
    uniform = torch.rand(rows.stop, length, generator=tokens, dtype=torch.float64)[rows.start :]  # (B, L)
    return masks_at(loss_type, quantile, uniform, noise, lengths)


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """Draws n numbers in [0, 1), one in each of n equal intervals.

    Number i is (pi(i) + u_i) / n, where pi is a random permutation of 0 .. n - 1 and u_i is uniform. Together the
    numbers cover [0, 1) evenly. Each one alone is uniform.

    Returns:
        (n,) float64.
    """
    stratum = torch.randperm(n, generator=generator)
    quantile = (stratum + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    return quantile.clamp(max=1 - 2**-53)  # the sum may have been rounded up


def masks_at(loss_type: str, quantile: Tensor, uniform: Tensor, noise: Noise, lengths: Tensor | None = None) -> Masks:
    """Computes masks from uniform random numbers.

    Args:
        quantile: (B,) float64 in [0, 1): the level of each row, as a quantile of the level's distribution.
        uniform: (B, L) float64 in [0, 1): decides which tokens of a row are masked at that level.
        lengths: (B,) tokens of each row; the places after them are padding and stay unmasked. None: L tokens each.
    """
    check_loss_type(loss_type)
    length = torch.full_like(quantile, uniform.shape[1]) if lengths is None else lengths.to(quantile)  # (B,)
    padding = torch.arange(uniform.shape[1]) >= length[:, None]  # (B, L)
    if loss_type in T_LOSSES:
        level = FIRST_TIME + (1 - FIRST_TIME) * quantile  # t
        masked = uniform < -torch.expm1(-noise.sigma(level))[:, None]
    elif loss_type == "lambda_DCE":
        level = 1 - quantile  # lambda, in (0, 1]
        masked = uniform < level[:, None]
    else:
        level = (quantile * length).floor() + 1  # k, in {1, ..., L}
        order = uniform.masked_fill(padding, 1.0).argsort(dim=1)  # (B, L)
        first = torch.arange(uniform.shape[1]) < level[:, None]  # (B, L)
        masked = torch.zeros_like(first).scatter_(1, order, first)
    masked &= ~padding
    weight, offset = loss_weights(loss_type, level, masked.sum(dim=1), length, noise)
    return Masks(masked, weight.float(), offset.float())


def loss_weights(
    loss_type: str, level: Tensor, n_masked: Tensor, length: int | Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Computes the weight w and the offset, (B,) each, of rows at `level` (B,) with `n_masked` (B,) masks.

    The level is t, lambda or k, depending on the loss. The result has the dtype of `level`. Pass float64 near t = 0,
    where the weight of the t losses grows as 1 / t.
    """
    check_loss_type(loss_type)
    offset = torch.zeros_like(level)
    if loss_type == "lambda_DCE":
        return 1 / level, offset
    if loss_type == "k_DCE":
        return length / level, offset
    odds = torch.expm1(noise.sigma(level))  # e^sigma - 1
    weight = noise.dsigma(level) / odds
    return weight, weight * n_masked * odds.log() if loss_type == "t_DCE" else offset


def check_loss_type(loss_type: str) -> None:
    """Raises a ValueError unless the name is that of a loss."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type={loss_type!r} must be one of {LOSS_TYPES}.")
