# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The training steps to compare: those of the baseline, of this library, and of this library's script.

Shapes: B rows, L length.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from radd_hf import RaddForMaskedLM
from radd_hf.kernels_radd import compile_trunk
from radd_hf.losses import Masks
from radd_hf.randomness_radd import stream_seed
from radd_hf.training.averages import Ema
from radd_hf.training.prepare import Preparation, to_device

from .baseline import full_logits, training_loss
from .measure import DTYPES

CLIP = 1.0
LEARNING_RATE = 1e-5
EMA_DECAY = 0.9999


class Trainer:
    """Trains one model. Every side takes the same steps on the same batch and masks.

    The baseline uses torch's default AdamW, and ours the fused one of `train_accelerate.py`. Under float16 the
    gradients are scaled, as autocast needs it.

    Args:
        sides: names of the sides; the baseline is first.
        x0: (B, L), clean ids.
        masks: (B, L), on the CPU.
    """

    def __init__(self, model: RaddForMaskedLM, sides: Sequence[str], x0: Tensor, masks: Masks):
        self.model, self.sides, self.masks = model.train(), sides, masks
        self.baseline, self.device = sides[0], model.device
        self.x0 = x0.to(self.device)
        self.optimizers = {
            side: torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=side != self.baseline or None)
            for side in sides
        }
        # The scale begins at 1, where no gradient of random weights overflows. A step that overflowed would be skipped.
        self.scalers = {
            side: torch.amp.GradScaler(self.device.type, init_scale=1.0, enabled=DTYPES[side] == torch.float16)
            for side in sides
        }
        half = DTYPES[self.baseline] == torch.float16
        self.network = full_logits(model, torch.float16 if half else None)
        self.masks_there = Masks(*(each.to(self.device) for each in (masks.masked, masks.weight, masks.offset)))

    def compile(self, backend: str) -> None:
        """Compiles both sides of this library. The baseline calls the layers itself, and is not compiled."""
        torch.compiler.reset()  # earlier compilations count against a limit
        compile_trunk(self.model.model, backend)

    def inputs(self) -> dict[str, Any]:
        """Returns the arguments of the model's forward pass."""
        return self.masks.apply(self.x0, self.model.config.mask_token_id)

    def loss(self, side: str) -> Tensor:
        if side == self.baseline:
            return training_loss(self.network, self.x0, self.masks_there, self.model.config.mask_token_id)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=DTYPES[side] == torch.bfloat16):
            return self.model(**self.inputs()).loss

    def backward(self, side: str) -> None:
        """Adds the gradients to existing ones, as with accumulation. So their memory is not part of the peak."""
        self.loss(side).backward()
        self.optimizers[side].zero_grad(set_to_none=False)

    def step(self, side: str) -> Tensor:
        """Takes a training step, and returns the loss. A GPU may still be computing it."""
        optimizer, scaler, loss = self.optimizers[side], self.scalers[side], self.loss(side)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()


class ScriptTrainer(Trainer):
    """Trains like `train_accelerate.py`. The baseline uses the batch of the first step again and again.

    Ours prepares each batch during the step before, updates the averages, and reads a loss during the next step.
    """

    def __init__(self, model: RaddForMaskedLM, sides: Sequence[str], preparation: Preparation, seed: int):
        first = preparation.next().forwards[0]
        masked = first["labels"] != -100  # (B, L)
        weight = first["loss_weights"]
        x0 = torch.where(masked, first["labels"], first["input_ids"])
        super().__init__(model, sides, x0, Masks(masked, weight, torch.zeros_like(weight)))
        self.preparation, self.seed = preparation, seed
        self.averages = Ema(model, EMA_DECAY)
        self.unread: Tensor | None = None

    def inputs(self) -> dict[str, Any]:
        torch.manual_seed(stream_seed(self.seed, "dropout", self.preparation.step))
        return to_device(self.preparation.next().forwards[0], self.device)

    def step(self, side: str) -> Tensor:
        loss = super().step(side)
        if side != self.baseline:
            self.averages.update(self.model)
            if self.unread is not None:
                float(self.unread)
            self.unread = loss
        return loss
