# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A training run and the folder that it leaves.

    config.yaml                  every setting, as resolved
    metrics.jsonl                a line for each log, evaluation and sampling
    train.log                    what the console showed
    checkpoints/step_N/          the averaged model with its tokenizer, as a folder for the Hub
    checkpoints/step_N/state/    what a restart needs
    samples/step_N/0.txt ...     texts of the averaged model
    trackers/                    of TensorBoard and others

Every file of a checkpoint is written to `partial_N`, which is then renamed: a folder that has a step's name is whole.

Shapes: L length.
"""

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from ..data.blocks import ShuffledBlocks, StreamedBlocks
from ..data.collator import DiffusionCollator
from ..evaluation.metric import DiffusionPerplexity
from ..evaluation.quality import judge, token_entropy, write_samples
from ..randomness_radd import stream_seed
from .adapters import has_adapters, merged
from .averages import Ema
from .sharding import gather_whole

logger = logging.getLogger(__name__)

SAMPLES_AT_ONCE = 16


@dataclass
class Run:
    """What is trained, where it stands, and how it is saved, brought back, evaluated and sampled from."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    ema: Ema
    blank: torch.nn.Module | None  # of a sharded model: its modules without weights
    blocks: ShuffledBlocks | StreamedBlocks
    collator: DiffusionCollator
    tokenizer: PreTrainedTokenizerBase
    output: Path
    seed: int
    identity: dict  # what must be the same for a run to go on
    step: int = 0
    blocks_state: dict = field(default_factory=dict)  # where the blocks stand after `step`; they are read ahead
    nats: float = 0.0  # of this process since the last log
    tokens: int = 0  # of all processes since the last log

    def save(self, keep_last: int) -> None:
        target = self.output / "checkpoints" / f"step_{self.step}"
        partial = target.with_name(f"partial_{self.step}")
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self.accelerator.wait_for_everyone()
        try:
            self._write(partial)
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:  # what a full disk may raise
            reason = " ".join(str(error).split())
            raise OSError(f"{partial} could not be written ({reason}); the checkpoints before it are whole.") from error
        self.accelerator.wait_for_everyone()  # every process has written its part
        if main:
            partial.replace(target)
            for old in all_checkpoints(self.output)[:-keep_last]:
                shutil.rmtree(old)

    def _write(self, folder: Path) -> None:
        """The averaged model as a folder for the Hub, and under `state/` what a restart needs."""
        self.accelerator.save_state(str(folder / "state"))
        nats = self.nats_of_each_process()
        with self.averaged() as model:  # in all processes, which gather the weights if they are sharded
            if not self.accelerator.is_main_process:
                return
            merged(model).save_pretrained(folder)
            if has_adapters(model):
                model.save_pretrained(folder / "adapter")
            weights = dict(model.named_parameters())
            averages = {name: weights[name].detach() for name in self.ema.state_dict()}
            save_file(averages, folder / "state" / "ema.safetensors")
        self.tokenizer.save_pretrained(folder)
        progress = {
            "updates": self.ema.updates,
            "scheduler": self.scheduler.state_dict(),
            "blocks": self.blocks_state,
            "nats": nats,
            "tokens": self.tokens,
            "identity": self.identity,
        }
        (folder / "state" / "progress.json").write_text(json.dumps(progress), encoding="utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Raises ValueError when the checkpoint is of another model, data set, objective or seed."""
        progress = json.loads((checkpoint / "state" / "progress.json").read_text(encoding="utf-8"))
        saved, now = progress["identity"], json.loads(json.dumps(self.identity))
        changed = {name: (saved.get(name), now[name]) for name in now if saved.get(name) != now[name]}
        if changed:
            raise ValueError(f"output_dir={self.output} holds another run; (saved, now) differ in {changed}.")
        self.accelerator.load_state(str(checkpoint / "state"))
        self.accelerator.step = 0  # forwards since the last step of the optimizer: accumulation may differ now
        self.ema.load_state_dict(load_file(checkpoint / "state" / "ema.safetensors"), progress["updates"])
        self.scheduler.load_state_dict(progress["scheduler"])
        self.blocks.load_state_dict(progress["blocks"])
        self.blocks_state = progress["blocks"]
        nats, process = progress["nats"], self.accelerator.process_index
        if len(nats) != self.accelerator.num_processes:  # started again with more or fewer
            nats = [sum(nats)] + [0.0] * (self.accelerator.num_processes - 1)
        self.nats, self.tokens = nats[process], progress["tokens"]
        self.step = int(checkpoint.name.removeprefix("step_"))
        logger.info("resumed from %s", checkpoint)

    def nats_of_each_process(self) -> list[float]:
        if self.accelerator.num_processes == 1:  # on any device, float64 or not
            return [self.nats]
        nats = torch.tensor([self.nats], dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.gather(nats).tolist()

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """The model with the averaged weights, whole in each process and in evaluation mode; all processes call.

        A forward of a sharded model is one of all processes together, which have different numbers of batches to
        evaluate: of such a model each process gets a copy.
        """
        model = self.accelerator.unwrap_model(self.model)
        if self.blank is None:
            with self.ema.applied(model), self.accelerator.autocast():
                yield model
            model.free_cuda_graphs()  # a step of training needs their memory
            return
        copied = copy.deepcopy(self.blank)
        weights = model.state_dict() | self.ema.state_dict()
        copied.load_state_dict({name: gather_whole(weight) for name, weight in weights.items()}, assign=True)
        with self.accelerator.autocast():
            yield copied.eval()

    def evaluate(self, sequences: Sequence[Tensor], passes: int, n_bytes: int | None = None) -> dict:
        """Of the averaged model on sequences (L,), by all processes together; see [`DiffusionPerplexity`]."""
        with self.averaged() as model:
            return DiffusionPerplexity().compute(
                predictions=sequences,
                model=model,
                passes=passes,
                batch_size=64,
                seed=self.seed,
                n_bytes=n_bytes,
                accelerator=self.accelerator,
            )

    def sample(self, count: int, settings: dict, judged_by: tuple | None) -> dict[str, float]:
        """Texts of the averaged model to `samples/step_N`, shared out over the processes; their quality.

        Each text has a generator of its own, whoever writes it; see [`write_samples`].
        """
        seed = stream_seed(self.seed, "sample", self.step)
        with self.averaged() as model:
            rows = write_samples(
                model, count, seed=seed, batch_size=SAMPLES_AT_ONCE, accelerator=self.accelerator, **settings
            ).ids  # (count, L)
        if not self.accelerator.is_main_process:
            return {}
        folder = self.output / "samples" / f"step_{self.step}"
        folder.mkdir(parents=True, exist_ok=True)
        texts = self.tokenizer.batch_decode(rows)
        for index, text in enumerate(texts):
            (folder / f"{index}.txt").write_text(text, encoding="utf-8")
        figures = {"sample_token_entropy": token_entropy(rows)}
        if judged_by is not None:
            judgement = judge(texts, *judged_by, eos_token=self.tokenizer.eos_token)
            if judgement is not None:
                figures["sample_perplexity"] = judgement.perplexity
            if n_empty := count if judgement is None else judgement.n_empty:
                figures["sample_empty_texts"] = n_empty  # which the judge left out
        return figures

    def log(self, note: str = "", **figures) -> None:
        """To metrics.jsonl, the trackers and, with a note, the log; by the first process."""
        if not self.accelerator.is_main_process:
            return
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **figures}) + "\n")
        self.accelerator.log({k: v for k, v in figures.items() if isinstance(v, (int, float))}, step=self.step)
        line = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
        logger.info("step=%s %s%s", self.step, line, note)


def drop_later_metrics(file: Path, step: int) -> None:
    """What a killed run logged after its last checkpoint will be logged again; a half-written line goes, too."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # only the last line can be half there
        if record["step"] <= step and not any(name.startswith("final_") for name in record):
            kept.append(line + "\n")
    beside = file.with_suffix(".partial")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(file)


def all_checkpoints(output: Path) -> list[Path]:
    return sorted((output / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def last_checkpoint(output: Path) -> Path | None:
    checkpoints = all_checkpoints(output)
    return checkpoints[-1] if checkpoints else None
