# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The exponential moving average of the weights, with the paper's decay."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..kernels_radd import evaluation_mode


def ema_decay(decay: float, n: int) -> float:
    """Returns the decay of update n = 1, 2, ...: min(decay, (1 + n) / (10 + n)). It is smaller for early updates."""
    return min(decay, (1 + n) / (10 + n))


class Ema:
    """The averages a <- a - (1 - d_n) (a - w) of every trained parameter w, n = 1, 2, ...; a starts at w.

    The update uses `sub_`, as the authors' code does, and agrees with it to the bit; `lerp` rounds differently. torch's
    AveragedModel would keep a second module. Here the averages are tensors, sharded as the parameters are, and
    `applied` exchanges them with the parameters.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay} must lie in [0, 1).")
        self.decay = decay
        self.updates = 0
        self.averages = {name: weight.detach().clone() for name, weight in trained_parameters(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        keep = 1 - ema_decay(self.decay, self.updates)
        named = dict(trained_parameters(model))
        weights, averages = [weight.detach() for weight in named.values()], [self.averages[name] for name in named]
        change = torch._foreach_sub(averages, weights)  # all tensors in a few kernel launches, if the device can
        torch._foreach_mul_(change, keep)
        torch._foreach_sub_(averages, change)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Puts the averages into `model`, in evaluation mode. Afterwards it restores the model to the bit."""
        self._exchange(model)
        try:
            with evaluation_mode(model):
                yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for name, weight in trained_parameters(model):
            current = weight.detach().clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        return self.averages


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
