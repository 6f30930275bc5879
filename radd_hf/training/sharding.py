# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Prepares training sharded by FSDP2, or by DeepSpeed up to ZeRO-2, where every process keeps the whole weights."""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# Launches without sharding: every process has the whole weights, gradients and optimizer state.
UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def sharding_of(accelerator: Accelerator) -> str:
    """Returns Accelerate's name for the kind of sharding, or "none" if nothing is sharded."""
    return "none" if accelerator.distributed_type in UNSHARDED else accelerator.distributed_type.value


def by_deepspeed(accelerator: Accelerator) -> bool:
    """Tells whether DeepSpeed keeps the optimizer's state. It does so in its own format."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def fsdp_skeleton(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module | None:
    """Returns a copy of the model without its weights if FSDP is to shard it, else None."""
    return copy.deepcopy(model).to("meta") if accelerator.distributed_type == DistributedType.FSDP else None


def gather_whole(tensor: Tensor) -> Tensor:
    """Gathers a tensor from the parts that the processes hold. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def take_part(target: Tensor, whole: Tensor, name: str) -> None:
    """Copies the whole tensor, or this process's part of it, to `target`. Every process has read the whole.

    Raises:
        ValueError: if the shapes or the dtypes differ.
    """
    if target.shape != whole.shape:
        raise ValueError(f"{name} has the shape {tuple(whole.shape)}; it must have {tuple(target.shape)}")
    if target.dtype != whole.dtype:
        raise ValueError(f"{name} is {whole.dtype}; it must be {target.dtype}")
    if isinstance(target, DTensor):
        whole = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(whole)


def prepare_sharding(
    accelerator: Accelerator, *, rows_of_a_forward: int, accumulation: int, max_grad_norm: float, mixed_precision: str
) -> None:
    """Completes the launcher's settings of FSDP2 or DeepSpeed.

    Raises:
        ValueError: for a kind of sharding that training does not support, or a setting that would change the training.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        prepare_fsdp(accelerator)
    elif by_deepspeed(accelerator):
        prepare_deepspeed(accelerator, rows_of_a_forward, accumulation, max_grad_norm, mixed_precision)
    elif accelerator.distributed_type not in UNSHARDED:
        raise ValueError(f"distributed_type={accelerator.distributed_type.value}: use DDP, FSDP2 or DeepSpeed.")


def prepare_fsdp(accelerator: Accelerator) -> None:
    """Refuses settings of FSDP that training does not support, and leaves mixed precision to autocast."""
    plugin = accelerator.state.fsdp_plugin
    if not accelerator.is_fsdp2:
        raise ValueError(f"fsdp_version={plugin.fsdp_version} must be 2, as in configs/accelerate/fsdp2.yaml.")
    if plugin.activation_checkpointing:
        raise ValueError("fsdp_activation_checkpointing=True renames the weights: use --gradient_checkpointing.")
    # Accelerate's policy would also round the gradients and the loss to bfloat16. Autocast, which DDP uses, does not.
    plugin.mixed_precision_policy = None


def prepare_deepspeed(
    accelerator: Accelerator, rows_of_a_forward: int, accumulation: int, max_grad_norm: float, mixed_precision: str
) -> None:
    """Tells DeepSpeed the batch size, accumulation, clipping and precision.

    Accelerate would read the batch size from a DataLoader, but training prepares none. Its "auto" for clipping means 1.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin.zero_stage > 2:
        raise ValueError(f"zero_stage={plugin.zero_stage} must be at most 2: the moving average needs whole weights.")
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision={accelerator.mixed_precision!r} of Accelerate must be 'no' under DeepSpeed: pass "
            "--mixed_precision bf16 to the script instead."
        )
    if mixed_precision == "fp16":
        raise ValueError("mixed_precision='fp16' must be 'no' or 'bf16' under DeepSpeed.")
    ours = {
        "train_micro_batch_size_per_gpu": ("batch_size", rows_of_a_forward),
        "train_batch_size": ("batch_size", rows_of_a_forward * accumulation * accelerator.num_processes),
        "gradient_accumulation_steps": ("accumulation", accumulation),
        "gradient_clipping": ("max_grad_norm", max_grad_norm),
    }
    unasked = {"gradient_accumulation_steps": ("auto", 1)}  # Accelerate fills in 1 if the file has no value
    for key, (argument, value) in ours.items():
        asked = plugin.deepspeed_config.get(key, "auto")
        if asked != value and asked not in unasked.get(key, ("auto",)):
            raise ValueError(
                f"{key}={asked!r} of DeepSpeed's configuration must be 'auto', or {value!r} to match {argument}."
            )
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": rows_of_a_forward,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "torch_autocast": {
            "enabled": mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
