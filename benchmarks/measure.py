# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures speed and memory, and the limit that arithmetic sets.

Times are medians over repeats. In a repeat all sides take turns, together with the matrix product that gives the
machine's rate. So if the machine slows down, it does so for all. A GPU works asynchronously, so the host waits for it
before the clock starts and before it stops. The limit of a case is the time of its unavoidable operations at that rate.
radd_hf/hub/facts.py counts them: the products of the network on the whole sequence, but those of the last layer's
queries, and of all that follows, only on positions whose distribution is used. (The model projects the last layer's
queries at all positions. This is 1/144 of the layers' products in the small model.)

Shapes: B rows, L length.
"""

import argparse
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import psutil
import torch
import transformers
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedConfig

from radd_hf import RaddConfig
from radd_hf.hub.facts import forward_flops
from radd_hf.kernels_radd import ONEDNN_LINEAR, onednn_linear

BASELINE, OURS, OURS_BF16 = SIDES = ("baseline fp32", "ours fp32", "ours bf16")
BASELINE_FP16 = "baseline fp16"
GPU_SIDES = (BASELINE_FP16, OURS, OURS_BF16)
# The dtype of each side's products. The baseline runs in float16 by autocast, with weights in float32.
DTYPES = {
    BASELINE: torch.float32,
    BASELINE_FP16: torch.float16,
    OURS: torch.float32,
    OURS_BF16: torch.bfloat16,
}
PRODUCTS = {"cpu": 1, "cuda": 10}  # matrix products timed together: one takes a GPU only a millisecond


def sides_of(device: str) -> tuple[str, ...]:
    """Returns the sides of a comparison, the baseline first. As published, it is float32 on a CPU, float16 on a GPU."""
    return SIDES if device == "cpu" else GPU_SIDES


def seeded(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@dataclass
class Case:
    """A line of the table: one quantity for each side. Smaller is better.

    Attributes:
        values: the values of each side, one for each repeat; the baseline is first.
        flops: operations that no side can avoid for one unit; 0 if the limit is not arithmetic.
        rates: FLOP/s of a large matrix product in each side's dtype, one for each repeat.
        facts: other facts to report.
    """

    name: str
    unit: str
    values: dict[str, list[float]]
    flops: float = 0.0
    rates: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, side: str) -> float:
        return statistics.median(self.values[side])

    def ratio(self, side: str) -> float:
        """Returns the baseline's quantity divided by the side's."""
        return self.median(next(iter(self.values))) / self.median(side)

    def fraction(self, side: str) -> float | None:
        """Returns the rate of the unavoidable operations as a fraction of the measured rate."""
        if not self.flops:
            return None
        return self.flops / self.median(side) / statistics.median(self.rates[side])

    def as_dict(self) -> dict[str, Any]:
        sides = {
            side: {
                "median": self.median(side),
                "all": self.values[side],
                "ratio": self.ratio(side),
                "fraction": self.fraction(side),
                "matmul_flops_per_second": statistics.median(self.rates[side]) if self.rates else None,
            }
            for side in self.values
        }
        return {"name": self.name, "unit": self.unit, "flops": self.flops, "sides": sides, "facts": self.facts}


def seconds(function: Callable[[], Any]) -> float:
    """Times a call, including its work on the GPU, and excluding earlier work there."""
    wait_for_gpu()
    start = time.perf_counter()
    function()
    wait_for_gpu()
    return time.perf_counter() - start


def wait_for_gpu() -> None:
    """Waits for the GPU, if this process has used one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def repeated(function: Callable[[], Any], times: int) -> Callable[[], None]:
    """Returns a function that calls `function` the given number of times."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def alternate(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls each side once in every repeat, in turn, and returns the results of each."""
    results: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, measure in sides.items():
            results[side].append(measure())
    return results


def compare(
    name: str,
    unit: str,
    flops: float,
    sides: Mapping[str, Callable[[], float]],
    repeats: int,
    matmul_size: int,
    device: str = "cpu",
    **facts: Any,
) -> Case:
    """Times one unit of each side and, in the same turns, the device's rate in each side's dtype."""
    products = {dtype: MatrixProduct(dtype, matmul_size, device) for dtype in {DTYPES[side] for side in sides}}
    turns = {**sides, **{str(dtype): product.rate for dtype, product in products.items()}}
    results = alternate(turns, repeats)
    rates = {side: results[str(DTYPES[side])] for side in sides}
    return Case(name, unit, {side: results[side] for side in sides}, flops, rates, facts)


class MatrixProduct:
    """A product of two square matrices, large enough for the best rate. On a CPU torch's faster library counts."""

    def __init__(self, dtype: torch.dtype, size: int, device: str = "cpu"):
        generator = seeded(0, device)
        self.size, self.times = size, PRODUCTS[device]
        self.left, self.right = (
            torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2)
        )
        self.ways = [lambda: self.left @ self.right]  # by torch's choice; below also as in the model's layers
        # oneDNN does not have float16 on every CPU
        if device == "cpu" and dtype != torch.float16 and ONEDNN_LINEAR is not None:
            self.ways.append(lambda: onednn_linear(self.left, self.right))
        self.rate()  # a warm-up, in which kernels are chosen

    def rate(self) -> float:
        """Measures the rate in FLOP/s."""
        return self.times * 2 * self.size**3 / min(seconds(repeated(way, self.times)) for way in self.ways)


# ---------------------------------------------------------------------------------------------------------
# Operations that cannot be avoided
# ---------------------------------------------------------------------------------------------------------


def evaluation_flops(config: PreTrainedConfig, length: int, outputs: Iterable[int]) -> float:
    """Counts the FLOP of one evaluation of each row of `length`. A row without outputs costs nothing.

    Args:
        outputs: the number of outputs of each row.
    """
    rows = [
        forward_flops(cast(RaddConfig, config), wanted, queries=wanted, length=length) for wanted in outputs if wanted
    ]
    return sum(row.layers + row.head for row in rows)


def sampling_flops(config: PreTrainedConfig, plan: Tensor) -> float:
    """Counts the FLOP of a whole sample. plan (B, L) is the step that reveals each position, or -1."""
    events = [row[row >= 0].unique(return_counts=True)[1].tolist() for row in plan]
    return sum(evaluation_flops(config, plan.shape[1], counts) for counts in events)


def training_flops(config: RaddConfig, masked: Tensor) -> float:
    """Counts the FLOP of forward and backward for masks (B, L). The optimizer has no matrix products."""
    rows = [forward_flops(config, n, queries=n, length=masked.shape[1]) for n in masked.sum(dim=1).tolist()]
    return sum(row.training(checkpointing=False, head_again=False) for row in rows)


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


# What measures the peak, for the table.
PEAKS = {"cpu": "torch's memory profiler", "cuda": "torch's allocator on the GPU"}


# Settings of `generate` for all benchmarks: the exact sampler, whatever settings a checkpoint has saved.
EXACT: dict[str, Any] = {"exact": True, "method": "tweedie"}


def positive(text: str) -> int:
    """Parses an argument that must be a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def peak_bytes(function: Callable[[], Any], device: str = "cpu") -> int:
    """Measures the peak memory of tensors on the device during a call, above what they held before."""
    return peak_bytes_of_gpu(function) if device == "cuda" else peak_bytes_of_cpu(function)


def peak_bytes_of_gpu(function: Callable[[], Any]) -> int:
    """Asks torch's allocator, which counts the memory of tensors and not its reserve."""
    gc.collect()
    wait_for_gpu()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    wait_for_gpu()
    return torch.cuda.max_memory_allocated() - before


def peak_bytes_of_cpu(function: Callable[[], Any]) -> int:
    """Asks torch's memory profiler, which sees only the allocations of tensors on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class ResidentPeak:
    """The peak memory of the process inside a `with`, above that on entry: `with ResidentPeak() as memory`.

    psutil samples it every two milliseconds. Pages of mapped files count as soon as they are touched.
    """

    def __enter__(self) -> "ResidentPeak":
        self.process, self.done = psutil.Process(), threading.Event()
        self.rest = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self.peak = max(self.peak, self.process.memory_info().rss)
        self.done.set()
        self.thread.join()

    @property
    def bytes(self) -> int:
        return self.peak - self.rest


# ---------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    gpu = describe_gpu() if device == "cuda" else {}
    return gpu | {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "load_at_start": [round(load, 2) for load in psutil.getloadavg()],
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
    }


def describe_gpu() -> dict[str, Any]:
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return {
        "card": torch.cuda.get_device_name(),
        "card_memory_gb": round(memory / 1e9, 1),
        "cuda": torch.version.cuda,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123, a fixed path
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
