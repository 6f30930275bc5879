# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes and reads the tensors of a run: weights, moments of the optimizer and averages, by parameter name.

The files are those of one process, whichever way the tensors are shared out: the main process writes whole tensors, and
every process reads them and takes its parts. They are safetensors, which hold numbers and nothing that could be run.
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
    """Returns the whole tensors in the memory of the main process, nothing in the others; all processes must call it.

    One is gathered after the other, so that a GPU holds one of them.
    """
    kept = {}
    for name, tensor in tensors.items():
        whole = gather_whole(tensor.detach())
        if accelerator.is_main_process:
            kept[name] = whole.cpu().contiguous()
    return kept


def load_tensors(targets: Mapping[str, Tensor], file: Path) -> None:
    """Copies the tensors of a file to those of the same names, each process the parts that it holds.

    Raises:
        ValueError: for names or shapes that differ.
    """
    with safe_open(file, "pt") as saved:
        different = sorted(targets.keys() ^ set(saved.keys()))
        if different:
            raise ValueError(f"{len(different)} tensors of {file.name} are missing or too many, such as {different[0]}")
        for name, target in targets.items():
            take_part(target, saved.get_tensor(name), name)


def optimizer_tensors(optimizer: AcceleratedOptimizer, model: nn.Module) -> dict[str, Tensor]:
    """Returns moments and number of steps of each trained parameter; nothing before the first step."""
    return {
        f"{name}.{key}": value
        for name, weight in trained_parameters(model)
        for key, value in optimizer.state.get(weight, {}).items()
    }


def load_optimizer(optimizer: AcceleratedOptimizer, model: nn.Module, file: Path) -> None:
    """Restores what `optimizer_tensors` returned; learning rate and other settings stay as they are.

    Raises:
        ValueError: for names or shapes that differ.
    """
    with safe_open(file, "pt") as saved:
        if not list(saved.keys()):
            return
    restored: dict[str, dict[str, Tensor]] = {
        name: {"step": torch.empty(()), "exp_avg": torch.empty_like(weight), "exp_avg_sq": torch.empty_like(weight)}
        for name, weight in trained_parameters(model)
    }
    load_tensors({f"{name}.{key}": value for name, state in restored.items() for key, value in state.items()}, file)
    # The optimizer numbers its parameters, in the order of the model.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(enumerate(restored.values()))})
