# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A training run and the folder that it leaves.

    config.yaml                  every setting, as resolved
    metrics.jsonl                a line for each log, evaluation and sampling
    train.log                    what the console showed
    checkpoints/step_N/          the averaged model with its tokenizer, as a folder for the Hub
    checkpoints/step_N/state/    what a restart needs
    samples/step_N/0.txt ...     texts of the averaged model
    trackers/                    of TensorBoard and others
    run.lock                     who trains here at present

checkpoints.py says how these folders are written whole or not at all, and found damaged. Random states are not among
what a restart needs: every draw is a function of the seed, the step and the row.

Shapes: L length.
"""

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from ..data.blocks import ShuffledBlocks, StreamedBlocks
from ..data.collator import DiffusionCollator
from ..evaluation.metric import DiffusionPerplexity
from ..evaluation.quality import judge, token_entropy, write_samples
from ..evaluation.rounds import rounds_bar
from ..hub.runs import PROGRESS, step_of
from ..likelihood import plan_rounds
from ..processes import on_main
from ..randomness_radd import stream_seed
from ..results import replace_text, to_json, write_synced
from ..settings_radd import shortened
from .adapters import has_adapters, merged
from .averages import Ema
from .checkpoints import complete, delete_old, make_partial, new_identity, writing
from .lock import check_held
from .restart import check_identity, read_progress, restored_schedule, restoring
from .sharding import by_deepspeed, gather_whole, own_part
from .state import load_optimizer, load_tensors, optimizer_tensors, whole_on_main
from .stops import Stops

logger = logging.getLogger(__name__)

ESTIMATOR = "k_stratified"  # of the likelihood of held-out text
SAMPLES_AT_ONCE = 16


@dataclass
class Run:
    """Holds the parts and the state of a training run. It saves, resumes, evaluates and samples from the run."""

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
    stops: Stops
    run_id: str = field(default_factory=new_identity)  # the main process writes its own; kept by restarts
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
        """Writes the checkpoint of this step and deletes all but the last; all processes call.

        Raises:
            FloatingPointError: for weights or averages that are not finite; then nothing is written or deleted.
            OSError: in all processes, if the main one cannot write it; earlier checkpoints are whole.
        """
        self.check_finite()
        folder = self.output / "checkpoints" / f"partial_{self.step}"
        identities = {"run_id": self.run_id, "save_id": new_identity()}

        def write(work: Callable[[], object]) -> None:  # by the main process
            def guarded() -> None:
                with writing(folder):
                    work()

            on_main(self.accelerator, guarded)

        def begin() -> None:
            check_held(self.output)
            make_partial(folder)

        write(begin)
        if by_deepspeed(self.accelerator):
            with writing(folder):
                self.accelerator.save_state(str(folder / "state"))
            self.accelerator.wait_for_everyone()  # every process has written its part
        for name, tensors in self.tensors().items():
            whole = whole_on_main(tensors, self.accelerator)
            write(partial(save_file, whole, folder / "state" / name, metadata=identities))
        progress = self.progress() | identities
        with self.averaged() as model:  # in all processes, which gather the weights if they are sharded
            write(lambda: self._write_model(model, folder))
        write(lambda: write_synced(folder / PROGRESS, json.dumps(progress)))
        write(lambda: complete(folder, identities, logged=self.output / "metrics.jsonl"))
        if self.accelerator.is_main_process:
            delete_old(self.output, keep_last)

    def _write_model(self, model: Any, folder: Path) -> None:
        """Writes the averaged model as a folder for the Hub."""
        merged(model).save_pretrained(folder)
        if has_adapters(model):
            model.save_pretrained(folder / "adapter")
        self.tokenizer.save_pretrained(folder)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Returns the tensors that a restart needs, by file: weights, optimizer moments and averages, as sharded."""
        model = self.accelerator.unwrap_model(self.model)
        averages: dict[str, Mapping[str, Tensor]] = {"ema.safetensors": self.ema.state_dict()}
        if by_deepspeed(self.accelerator):
            return averages
        weights, moments = dict(model.named_parameters()), optimizer_tensors(self.optimizer, model)
        return {"model.safetensors": weights, "optimizer.safetensors": moments, **averages}

    def progress(self) -> dict[str, Any]:
        """Returns the numbers that a restart needs and that `restart.py` compares; all processes call."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "updates": self.ema.updates,
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "scaler": None if scaler is None else scaler.state_dict(),  # of fp16; numbers
            "blocks": self.blocks_state,
            "nats": self.nats_of_each_process(),
            "tokens": self.tokens,
            "settings": {name: value for name, value in self.settings.items() if name != "output_dir"},
            "identity": self.identity,
        }

    def resume(self, checkpoint: Path) -> None:
        """Restores the run at a checkpoint; the arguments replace the settings of optimizer and schedule in it.

        Raises:
            ValueError: when the checkpoint is of another model or text, or cannot be restored.
        """
        with restoring(checkpoint):
            progress = read_progress(checkpoint)
            identity = progress["identity"]
        check_identity(checkpoint, identity, self.identity)
        with restoring(checkpoint):
            self._restore(checkpoint / "state", progress)
        self.step = step_of(checkpoint)
        logger.info("resumed from %s", checkpoint)

    def _restore(self, state: Path, progress: dict) -> None:
        model, scaler = self.accelerator.unwrap_model(self.model), self.accelerator.scaler
        if by_deepspeed(self.accelerator):
            self._restore_deepspeed(state)
        else:
            load_tensors(dict(model.named_parameters()), state / "model.safetensors")
            load_optimizer(self.optimizer, model, state / "optimizer.safetensors")
        load_tensors(self.ema.state_dict(), state / "ema.safetensors")
        self.ema.updates = progress["updates"]
        if scaler is not None and progress["scaler"]:  # a run under another precision has left none
            scaler.load_state_dict(progress["scaler"])
        self.scheduler = restored_schedule(self.scheduler, progress["scheduler"]["last_epoch"])
        self.blocks.load_state_dict(progress["blocks"])
        self.blocks_state = progress["blocks"]
        nats, process = progress["nats"], self.accelerator.process_index
        if len(nats) != self.accelerator.num_processes:  # started again with more or fewer
            nats = [sum(nats)] + [0.0] * (self.accelerator.num_processes - 1)
        self.nats, self.tokens = nats[process], progress["tokens"]
        self.run_id = progress["run_id"]

    def _restore_deepspeed(self, state: Path) -> None:
        """Lets DeepSpeed read its own files, which are pickles.

        docs/training.md says whose to read ("Run folders from other people").
        """
        given = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.accelerator.load_state(str(state))
        self.accelerator.step = 0  # forwards since the last step of the optimizer: accumulation may differ now
        for group, settings in zip(self.optimizer.param_groups, given, strict=True):
            group.update(settings)

    def nats_of_each_process(self) -> list[float]:
        if self.accelerator.num_processes == 1:  # on any device, float64 or not
            return [self.nats]
        nats = torch.tensor([self.nats], dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.gather(nats).tolist()

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """Yields the model with the averaged weights, whole in each process, in evaluation mode; all processes call.

        A forward of a sharded model needs all processes at once, but they have different numbers of batches to
        evaluate. So each process gets its own copy of such a model.
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

    def evaluate(
        self, sequences: Sequence[Tensor], passes: int, n_bytes: int | None = None, shown: bool = False
    ) -> dict:
        """Evaluates the averaged model on sequences (L,), by all processes together; see [`DiffusionPerplexity`].

        Args:
            shown: with a bar.

        Raises:
            FloatingPointError: for a model whose weights or likelihoods are not finite.
            Stopped: in all processes, for a signal in the meantime; so does `sample`.
        """
        self.check_finite()
        rounds = plan_rounds(ESTIMATOR, passes, None)[1]
        bar = rounds_bar(self.accelerator, [len(each) for each in sequences], rounds) if shown else nullcontext()
        with self.averaged() as model, bar as report, self.stops.interruptible() as before_gathering:
            figures = DiffusionPerplexity().compute(
                predictions=sequences,
                model=model,
                estimator=ESTIMATOR,
                passes=passes,
                batch_size=64,
                seed=self.seed,
                n_bytes=n_bytes,
                accelerator=self.accelerator,
                before_gathering=before_gathering,
                report=report,
            )
        if not math.isfinite(figures["nats_per_token"]):
            raise FloatingPointError(
                f"the averaged model of step {self.step} has {figures['nats_per_token']} nats per token: it diverged."
            )
        return figures

    def sample(self, count: int, settings: dict, judged_by: tuple | None) -> dict[str, float]:
        """Writes texts of the averaged model to `samples/step_N`, by all processes together; returns their quality.

        Each text has its own generator, whichever process writes it; see [`write_samples`].
        """
        self.check_finite()
        seed = stream_seed(self.seed, "sample", self.step)
        with self.averaged() as model, self.stops.interruptible() as before_gathering:
            rows = write_samples(
                model,
                count,
                seed=seed,
                batch_size=SAMPLES_AT_ONCE,
                accelerator=self.accelerator,
                before_gathering=before_gathering,
                **settings,
            ).ids  # (count, L)
        figures: dict[str, float] = {}
        with self.stops.interruptible(patiently=True) as wait:  # for a judge, which may be slow
            if self.accelerator.is_main_process:
                figures = self._look_at(rows, judged_by)
            wait()
        return figures

    def _look_at(self, rows: Tensor, judged_by: tuple | None) -> dict[str, float]:
        """Writes the texts of rows (S, L) to their folder; returns their quality."""
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
            if n_empty := len(rows) if judgement is None else judgement.n_empty:
                figures["sample_empty_texts"] = n_empty  # which the judge left out
        return figures

    def log(self, note: str = "", **figures) -> None:
        """Writes figures to metrics.jsonl, the trackers and the log (with `note`), if this is the first process."""
        if not self.accelerator.is_main_process:
            return
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(to_json({"step": self.step, **figures}) + "\n")
        self.accelerator.log({k: v for k, v in figures.items() if isinstance(v, (int, float))}, step=self.step)
        line = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
        logger.info("step=%s %s%s", self.step, line, note)


def drop_later_metrics(file: Path, step: int) -> list[str]:
    """Drops what a killed run logged after its last checkpoint, which is logged again, and lines that are no records.

    Returns:
        The names of the figures that are there of the step itself.
    """
    if not file.exists():
        return []
    kept, figures = [], set[str]()
    for line in file.read_bytes().splitlines():
        try:
            text = line.decode("utf-8")
            record = json.loads(text)
            at = record["step"]
            if type(at) is not int:
                raise ValueError(f"step={at!r}")
        except (ValueError, KeyError, TypeError, RecursionError):  # half-written as a rule, when the run was killed
            logger.warning(
                "%s: a line that is no record is left out: %s", file, shortened(line.decode(errors="replace"))
            )
            continue
        if at <= step and not any(name.startswith("final_") for name in record):
            kept.append(text + "\n")
            figures |= record.keys() if at == step else set()
    replace_text(file, "".join(kept))
    return sorted(figures)
