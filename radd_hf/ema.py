# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The exponential moving average of the weights, by the paper's law."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def ema_decay(decay: float, n: int) -> float:
    """Decay of update n = 1, 2, ...: min(decay, (1 + n) / (10 + n)), so that early averages forget quickly."""
    return min(decay, (1 + n) / (10 + n))


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An average of `model` whose `update_parameters(model)` is a <- a - (1 - d_n) (a - w).

    Written with `sub_`, which is the authors' arithmetic to the last bit; `lerp` rounds differently.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay} must lie in [0, 1).")

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], n: Tensor | int) -> None:
        keep = 1 - ema_decay(decay, int(n))
        for a, w in zip(averaged, current, strict=True):
            a.sub_(keep * (a - w))

    ema = AveragedModel(model, multi_avg_fn=update)
    # AveragedModel's update at n = 0 is a plain copy; the paper's average starts at the weights.
    ema.n_averaged.fill_(1)
    return ema
