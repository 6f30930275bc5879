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
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import SCALER_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from ..data.blocks import ShuffledBlocks, StreamedBlocks
from ..data.collator import DiffusionCollator
from ..evaluation.metric import DiffusionPerplexity
from ..evaluation.quality import judge, token_entropy, write_samples
from ..randomness_radd import stream_seed
from ..results import to_json
from ..settings_radd import shortened
from .adapters import has_adapters, merged
from .averages import Ema
from .restart import check_identity, read_progress, restored_schedule, restoring, step_of
from .sharding import gather_whole, own_part

logger = logging.getLogger(__name__)

SAMPLES_AT_ONCE = 16


@dataclass
class Run:
    """What is trained, where it stands, and how it is saved, brought back, evaluated and sampled from."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: LambdaLR
    ema: Ema
    blank: torch.nn.Module | None  # of a sharded model: its modules without weights
    blocks: ShuffledBlocks | StreamedBlocks
    collator: DiffusionCollator
    tokenizer: PreTrainedTokenizerBase
    output: Path
    seed: int
    settings: dict  # all arguments; see restart.py
    identity: dict  # what they gave, which must be the same for a run to go on
    step: int = 0
    blocks_state: dict = field(default_factory=dict)  # where the blocks stand after `step`; they are read ahead
    nats: float = 0.0  # of this process since the last log
    tokens: int = 0  # of all processes since the last log

    def check_finite(self) -> None:
        """Raises a FloatingPointError that names a weight or an average that is not finite; all processes call.

        Each looks at its own part, and all are read at once.
        """
        model = self.accelerator.unwrap_model(self.model)
        tensors = {f"weight {name}": weight for name, weight in model.named_parameters()}
        tensors |= {f"average of {name}": average for name, average in self.ema.state_dict().items()}
        wrong = torch.stack([own_part(tensor.detach()).isfinite().all().logical_not() for tensor in tensors.values()])
        for name, processes in zip(tensors, self.accelerator.reduce(wrong.float(), "sum").tolist(), strict=True):
            if processes:
                raise FloatingPointError(f"the {name} is not finite after step {self.step}; nothing was saved of it.")

    def save(self, keep_last: int) -> None:
        """Writes the checkpoint of this step, then deletes old ones; all processes call.

        Raises:
            FloatingPointError: for weights or averages that are not finite; then nothing is written or deleted.
            OSError: when it could not be written.
        """
        self.check_finite()
        target = self.output / "checkpoints" / f"step_{self.step}"
        partial = target.with_name(f"partial_{self.step}")
        main = self.accelerator.is_main_process
        if main:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            set_aside(partial)
            partial.mkdir()
        self.accelerator.wait_for_everyone()
        try:
            self._write(partial)
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:  # what a full disk may raise
            reason = " ".join(str(error).split())
            raise OSError(f"{partial} could not be written ({reason}); the checkpoints before it are whole.") from error
        self.accelerator.wait_for_everyone()  # every process has written its part
        if main:
            set_aside(target)
            partial.replace(target)
            for old in all_checkpoints(self.output)[:-keep_last]:
                remove(old)

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
            "step": self.step,
            "updates": self.ema.updates,
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "blocks": self.blocks_state,
            "nats": nats,
            "tokens": self.tokens,
            "settings": {name: value for name, value in self.settings.items() if name != "output_dir"},
            "identity": self.identity,
        }
        (folder / "state" / "progress.json").write_text(json.dumps(progress), encoding="utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Restores the run at a checkpoint; the arguments replace the settings of optimizer and schedule in it.

        Raises:
            ValueError: when the checkpoint is of another model, text or kind of sharding, or is damaged.
        """
        with restoring(checkpoint):
            progress = read_progress(checkpoint)
            identity = progress["identity"]
            if progress.get("step", step_of(checkpoint)) != step_of(checkpoint):
                raise ValueError(f"it is the checkpoint of step {progress['step']}, and was renamed")
        check_identity(checkpoint, identity, self.identity)
        with restoring(checkpoint):
            self._restore(checkpoint, progress)
        self.step = step_of(checkpoint)
        logger.info("resumed from %s", checkpoint)

    def _restore(self, checkpoint: Path, progress: dict) -> None:
        given = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        scaler = self.accelerator.scaler  # that of fp16; a run under another precision has left none
        self.accelerator.scaler = scaler if (checkpoint / "state" / SCALER_NAME).exists() else None
        self.accelerator.load_state(str(checkpoint / "state"))
        self.accelerator.scaler = scaler
        self.accelerator.step = 0  # forwards since the last step of the optimizer: accumulation may differ now
        for group, settings in zip(self.optimizer.param_groups, given, strict=True):
            group.update(settings)
        self.scheduler = restored_schedule(self.scheduler, progress["scheduler"]["last_epoch"])
        self.ema.load_state_dict(load_file(checkpoint / "state" / "ema.safetensors"), progress["updates"])
        self.blocks.load_state_dict(progress["blocks"])
        self.blocks_state = progress["blocks"]
        nats, process = progress["nats"], self.accelerator.process_index
        if len(nats) != self.accelerator.num_processes:  # started again with more or fewer
            nats = [sum(nats)] + [0.0] * (self.accelerator.num_processes - 1)
        self.nats, self.tokens = nats[process], progress["tokens"]

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
        """Of the averaged model on sequences (L,), by all processes together; see [`DiffusionPerplexity`].

        Raises:
            FloatingPointError: for a model whose weights or likelihoods are not finite.
        """
        self.check_finite()
        with self.averaged() as model:
            figures = DiffusionPerplexity().compute(
                predictions=sequences,
                model=model,
                passes=passes,
                batch_size=64,
                seed=self.seed,
                n_bytes=n_bytes,
                accelerator=self.accelerator,
            )
        if not math.isfinite(figures["nats_per_token"]):
            raise FloatingPointError(
                f"the averaged model of step {self.step} has {figures['nats_per_token']} nats per token: it diverged."
            )
        return figures

    def sample(self, count: int, settings: dict, judged_by: tuple | None) -> dict[str, float]:
        """Texts of the averaged model to `samples/step_N`, shared out over the processes; their quality.

        Each text has a generator of its own, whoever writes it; see [`write_samples`].
        """
        self.check_finite()
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
            file.write(to_json({"step": self.step, **figures}) + "\n")
        self.accelerator.log({k: v for k, v in figures.items() if isinstance(v, (int, float))}, step=self.step)
        line = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
        logger.info("step=%s %s%s", self.step, line, note)


def drop_later_metrics(file: Path, step: int) -> None:
    """What a killed run logged after its last checkpoint will be logged again; a line that is no record goes, too."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # half-written as a rule, when the run was killed
            logger.warning("%s: a line that is no JSON is left out: %s", file, shortened(line))
            continue
        if record["step"] <= step and not any(name.startswith("final_") for name in record):
            kept.append(line + "\n")
    beside = file.with_suffix(".partial")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(file)


def all_checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; what else lies among them is left alone."""
    beside = (output / "checkpoints").glob("step_*")
    folders = (path for path in beside if re.fullmatch(r"step_[1-9][0-9]*", path.name) and path.is_dir())
    return sorted(folders, key=step_of)


def last_checkpoint(output: Path) -> Path | None:
    checkpoints = all_checkpoints(output)
    return checkpoints[-1] if checkpoints else None


def set_aside(path: Path) -> None:
    """Renames what stands where a checkpoint is to be written, so that it neither ends the run nor is lost."""
    if path.exists() or path.is_symlink():
        aside = next(free for n in count(1) if not (free := path.with_name(f"{path.name}_before_{n}")).exists())
        path.rename(aside)
        logger.warning("%s was in the way of a checkpoint and is now %s", path, aside)


def remove(checkpoint: Path) -> None:
    """Deletes an old checkpoint; one that cannot be deleted, a link for instance, does not end the run."""
    try:
        shutil.rmtree(checkpoint)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", checkpoint, error)
