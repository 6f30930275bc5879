# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes and reads the tensors of a run: weights, moments of the optimizer and averages, by parameter name.

The files do not depend on the sharding: the main process writes whole tensors, and every process reads them and takes
its parts. The files are safetensors, which hold numbers and no code.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import safe_open
from torch import Tensor, nn

from .averages import trained_parameters
from .sharding import gather_whole, take_part


def whole_on_main(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Returns the whole tensors, in CPU memory, on the main process, and nothing on the others. All must call it.

    The tensors are gathered one by one, so a GPU holds only one whole tensor at a time.
    """
    kept = {}
    for name, tensor in tensors.items():
        whole = gather_whole(tensor.detach())
        if accelerator.is_main_process:
            kept[name] = whole.cpu().contiguous()
    return kept


def load_tensors(targets: Mapping[str, Tensor], file: Path) -> None:
    """Copies the tensors of a file to the targets of the same names. Each process copies the parts that it holds.

    Raises:
        ValueError: if names or shapes differ.
    """
    with safe_open(file, "pt") as saved:
        different = sorted(targets.keys() ^ set(saved.keys()))
        if different:
            raise ValueError(f"{file.name} has {len(different)} tensors too few or too many, such as {different[0]}")
        for name, target in targets.items():
            take_part(target, saved.get_tensor(name), name)


def optimizer_tensors(optimizer: AcceleratedOptimizer, model: nn.Module) -> dict[str, Tensor]:
    """Returns the moments and the number of steps of each trained parameter; nothing before the first step."""
    return {
        f"{name}.{key}": value
        for name, weight in trained_parameters(model)
        for key, value in optimizer.state.get(weight, {}).items()
    }


def load_optimizer(optimizer: AcceleratedOptimizer, model: nn.Module, file: Path) -> None:
    """Restores what `optimizer_tensors` returned. The learning rate and other settings stay as they are.

    Raises:
        ValueError: if names or shapes differ.
    """
    with safe_open(file, "pt") as saved:
        if not list(saved.keys()):
            return
    restored: dict[str, dict[str, Tensor]] = {
        name: {"step": torch.empty(()), "exp_avg": torch.empty_like(weight), "exp_avg_sq": torch.empty_like(weight)}
        for name, weight in trained_parameters(model)
    }
    load_tensors({f"{name}.{key}": value for name, state in restored.items() for key, value in state.items()}, file)
    # The optimizer numbers its parameters in the order of the model.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(enumerate(restored.values()))})
