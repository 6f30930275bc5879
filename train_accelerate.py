# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Train RADD.

    accelerate launch train_accelerate.py --config configs/austen.yaml --loss_type lambda_DCE --output_dir runs/austen

Every field of the YAML can be given on the command line, which wins. Started again with the same output
directory, the run goes on from its last checkpoint. Everything random is a function of the seed, the step and the index
of a row in it, so neither a restart nor the number of processes changes what is drawn.

Shapes: B rows of an optimizer step, b rows of them in one forward, L length.
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, get_scheduler

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.collator import DiffusionCollator
from radd_hf.data import add_mask_token, cut, encode, fingerprint, load_documents, pack, train_tokenizer
from radd_hf.ema import Ema
from radd_hf.likelihood import estimate_likelihood
from radd_hf.losses import LOSS_TYPES, check_loss_type
from radd_hf.randomness import stream_seed

logger = logging.getLogger("radd_hf.train")

# The averages and the checkpoints are whole in every process.
DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass
class ModelArguments:
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_dropout: float = 0.02
    noise_type: str = field(default="loglinear", metadata={"help": "loglinear or geometric"})
    embedding_std: float | None = field(default=None, metadata={"help": "normal embedding; default: the paper's"})
    zero_init_residual: bool = field(default=False, metadata={"help": "residual branches start at zero"})


@dataclass
class DataArguments:
    dataset: str = field(default="austen", metadata={"help": "'austen' or the path of a text file"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "name or folder; default: a BPE of the training text"}
    )
    vocab_size: int = field(default=2048, metadata={"help": "of the BPE, mask included"})
    length: int = field(default=1024, metadata={"help": "tokens in a block"})
    random_length_fraction: float = field(
        default=0.0, metadata={"help": "of the blocks are cut to a length uniform in 1 .. length, 0.01 say"}
    )
    separate_documents: bool = field(
        default=False, metadata={"help": "a token attends to its own document alone; eager or sdpa attention"}
    )


@dataclass
class TrainingArguments:
    output_dir: str = "runs/radd"
    loss_type: str = field(default="lambda_DCE", metadata={"help": f"one of {LOSS_TYPES}"})
    max_steps: int = 400_000
    batch_size: int = field(default=512, metadata={"help": "sequences in one optimizer step, of all processes"})
    accumulation: int = field(default=1, metadata={"help": "forwards of each process in one optimizer step"})
    learning_rate: float = 3e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    lr_schedule: str = field(
        default="constant_with_warmup", metadata={"help": "one of transformers' schedules, e.g. linear"}
    )
    warmup_steps: int = 2500
    max_grad_norm: float = field(default=1.0, metadata={"help": "of the loss in nats per sequence, as in the paper"})
    ema_decay: float = 0.9999
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "eager, sdpa, flash_attention_2, flex_attention"}
    )
    seed: int = 0
    log_steps: int = 50
    save_steps: int = 1000
    eval_steps: int = 1000
    eval_sequences: int = field(
        default=128, metadata={"help": "held-out blocks scored during training; all at the end"}
    )
    eval_passes: int = 8
    keep_last: int = 2


def main(argv: list[str]) -> None:
    model_args, data_args, args = parse_arguments(argv)
    accelerator = make_accelerator(args)
    output = Path(args.output_dir)
    start_logging(output, accelerator)
    last = last_checkpoint(output)
    data = load_data(data_args, last)
    run = build(model_args, data_args, args, data, accelerator)
    if last is not None:
        run.resume(last)
    if accelerator.is_main_process:
        drop_later_metrics(output / "metrics.jsonl", run.step)
        resolved = asdict(model_args) | asdict(data_args) | asdict(args)
        (output / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    n_parameters = accelerator.unwrap_model(run.model).num_parameters()
    logger.info("%s parameters; %s blocks of %s tokens", f"{n_parameters:,}", *data.blocks.shape)
    train(run, data, args)
    final = run.evaluate(data.validation, args, n_bytes=data.validation_bytes)
    run.log(step=run.step, **{f"final_{name}": value for name, value in final.items()})


@dataclass
class Data:
    tokenizer: PreTrainedTokenizerBase
    blocks: Tensor  # (S, L) to train on
    validation: list[Tensor]  # (L,) each, the last one shorter
    validation_bytes: int


def load_data(data_args: DataArguments, last: Path | None) -> Data:
    """Text to blocks, with the tokenizer of the last checkpoint when a run goes on."""
    documents = load_documents(data_args.dataset, "train")
    held_out = load_documents(data_args.dataset, "validation")
    if last is not None or data_args.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(last or data_args.tokenizer)
    else:
        tokenizer = train_tokenizer(documents, data_args.vocab_size)
    add_mask_token(tokenizer)
    return Data(
        tokenizer=tokenizer,
        blocks=pack(encode(documents, tokenizer), data_args.length),
        validation=cut(encode(held_out, tokenizer), data_args.length),
        validation_bytes=sum(len(text.encode()) for text in held_out),
    )


@dataclass
class Run:
    """What a checkpoint saves and a restart brings back."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    ema: Ema
    collator: DiffusionCollator
    tokenizer: PreTrainedTokenizerBase
    output: Path
    identity: dict  # what must be the same for a run to go on
    step: int = 0
    nats: float = 0.0  # of this process since the last log
    tokens: int = 0  # of all processes since the last log

    def nats_of_each_process(self) -> list[float]:
        if self.accelerator.num_processes == 1:  # on any device, float64 or not
            return [self.nats]
        nats = torch.tensor([self.nats], dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.gather(nats).tolist()

    def save(self, keep_last: int) -> None:
        """Written beside and renamed: a folder that has a step's name is whole."""
        target = self.output / "checkpoints" / f"step_{self.step}"
        partial = target.with_name(f"partial_{self.step}")
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self.accelerator.wait_for_everyone()
        try:
            self._write(partial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError on a full disk
            raise OSError(f"{partial} could not be written ({error}); the checkpoints before it are whole.") from error
        self.accelerator.wait_for_everyone()  # every process has written its part
        if main:
            partial.replace(target)
            for old in all_checkpoints(self.output)[:-keep_last]:
                shutil.rmtree(old)

    def _write(self, folder: Path) -> None:
        """The averaged model as a folder for the Hub, and under `state/` what a restart needs."""
        self.accelerator.save_state(str(folder / "state"))
        nats = self.nats_of_each_process()
        if not self.accelerator.is_main_process:
            return
        model = self.accelerator.unwrap_model(self.model)
        with self.ema.applied(model):
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file(self.ema.state_dict(), folder / "state" / "ema.safetensors")
        progress = {
            "updates": self.ema.updates,
            "scheduler": self.scheduler.state_dict(),
            "nats": nats,
            "tokens": self.tokens,
            "identity": self.identity,
        }
        (folder / "state" / "progress.json").write_text(json.dumps(progress))

    def resume(self, checkpoint: Path) -> None:
        progress = json.loads((checkpoint / "state" / "progress.json").read_text())
        saved, now = progress["identity"], json.loads(json.dumps(self.identity))
        changed = {name: (saved.get(name), now[name]) for name in now if saved.get(name) != now[name]}
        if changed:
            raise ValueError(f"output_dir={self.output} holds another run; (saved, now) differ in {changed}.")
        self.accelerator.load_state(str(checkpoint / "state"))
        self.ema.load_state_dict(load_file(checkpoint / "state" / "ema.safetensors"), progress["updates"])
        self.scheduler.load_state_dict(progress["scheduler"])
        nats, process = progress["nats"], self.accelerator.process_index
        if len(nats) != self.accelerator.num_processes:  # started again with more or fewer
            nats = [sum(nats)] + [0.0] * (self.accelerator.num_processes - 1)
        self.nats, self.tokens = nats[process], progress["tokens"]
        self.step = int(checkpoint.name.removeprefix("step_"))
        logger.info("resumed from %s", checkpoint)

    def evaluate(self, sequences: list[Tensor], args: TrainingArguments, n_bytes: int | None = None) -> dict:
        model = self.accelerator.unwrap_model(self.model)
        with self.ema.applied(model), self.accelerator.autocast():
            likelihood = estimate_likelihood(
                model,
                sequences,
                passes=args.eval_passes,
                batch_size=64,
                seed=args.seed,
                n_bytes=n_bytes,
                accelerator=self.accelerator,
            )
        return likelihood.to_dict()

    def log(self, **figures) -> None:
        if self.accelerator.is_main_process:
            with (self.output / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(figures) + "\n")
        logger.info(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items()))


def build(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, data: Data, accelerator: Accelerator
) -> Run:
    """Network, draws, optimizer, schedule and average."""
    config = make_config(model_args, data_args, args, data)
    collator = DiffusionCollator(
        config, args.loss_type, args.seed, data_args.random_length_fraction, data_args.separate_documents
    )
    set_seed(args.seed)
    model = RaddForMaskedLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )
    scheduler = get_scheduler(args.lr_schedule, optimizer, args.warmup_steps, args.max_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    # After `prepare`, so that the averages lie where the weights do.
    ema = Ema(accelerator.unwrap_model(model), args.ema_decay)
    settings = {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
    identity = {
        "model": settings,
        "data": fingerprint(data.blocks),
        "tokenizer": data_args.tokenizer or data_args.vocab_size,
        "loss_type": args.loss_type,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "random_length_fraction": data_args.random_length_fraction,
        "separate_documents": data_args.separate_documents,
    }
    return Run(accelerator, model, optimizer, scheduler, ema, collator, data.tokenizer, Path(args.output_dir), identity)


def make_config(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, data: Data
) -> RaddConfig:
    if data_args.separate_documents and args.attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation={args.attn_implementation!r} cannot keep documents apart: use eager or sdpa."
        )
    return RaddConfig(
        vocab_size=len(data.tokenizer),
        mask_token_id=data.tokenizer.mask_token_id,
        eos_token_id=data.tokenizer.eos_token_id,
        max_position_embeddings=data_args.length,
        attn_implementation=args.attn_implementation,
        **asdict(model_args),
    )


def train(run: Run, data: Data, args: TrainingArguments) -> None:
    accelerator, model = run.accelerator, run.model
    length = data.blocks.shape[1]
    parts = forwards_of_a_step(args.batch_size, accelerator.num_processes, args.accumulation, accelerator.process_index)
    model.train()
    seconds, tokens_seen = 0.0, 0
    while run.step < args.max_steps:
        started = time.perf_counter()
        rows_of_step = batch_rows(run.step, args.batch_size, len(data.blocks), args.seed)  # (B,)
        for part, rows in enumerate(parts):
            torch.manual_seed(stream_seed(args.seed, "dropout", run.step, part, accelerator.process_index))
            x0 = data.blocks[rows_of_step[rows.start : rows.stop]]  # (b, L)
            inputs = run.collator.rows(x0, run.step, rows, args.batch_size)
            with accelerator.accumulate(model):  # gradients meet those of the other processes once a step
                outputs = model(**{name: value.to(accelerator.device) for name, value in inputs.items()})
                accelerator.backward(outputs.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                run.optimizer.step()
                run.optimizer.zero_grad()
            loss = outputs.loss.item()  # nats per sequence
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {run.step + 1}; nothing was saved after it.")
            run.nats += loss * len(rows)
        if not accelerator.optimizer_step_was_skipped:  # as under fp16 when a gradient overflowed
            run.scheduler.step()
            run.ema.update(accelerator.unwrap_model(model))
        tokens = run.collator.n_tokens(run.step, length, args.batch_size)
        run.step += 1
        run.tokens += tokens

        tokens_seen += tokens
        seconds += time.perf_counter() - started
        if run.step % args.log_steps == 0:
            rate = {"lr": run.scheduler.get_last_lr()[0], "tokens_per_second": tokens_seen / seconds}
            run.log(step=run.step, nats_per_token=sum(run.nats_of_each_process()) / run.tokens, **rate)
            run.nats, run.tokens, seconds, tokens_seen = 0.0, 0, 0.0, 0
        if run.step % args.eval_steps == 0:
            scored = run.evaluate(data.validation[: args.eval_sequences], args)
            run.log(
                step=run.step,
                validation_nats_per_token=scored["nats_per_token"],
                standard_error=scored["standard_error"],
            )
        if run.step % args.save_steps == 0 or run.step == args.max_steps:
            run.save(args.keep_last)


def forwards_of_a_step(batch_size: int, processes: int, accumulation: int, process: int) -> list[range]:
    """Which rows of every step this process computes, one range a forward."""
    if batch_size % (processes * accumulation):
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of {processes} processes x accumulation={accumulation}."
        )
    rows = batch_size // (processes * accumulation)
    first = [(part * processes + process) * rows for part in range(accumulation)]
    return [range(start, start + rows) for start in first]


def batch_rows(step: int, batch_size: int, n_blocks: int, seed: int) -> Tensor:
    """Blocks (B,) of one optimizer step: a new permutation every epoch, as a function of the step alone."""
    rows = []
    for sample in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(sample, n_blocks)
        if not rows or place == 0:
            generator = torch.Generator().manual_seed(stream_seed(seed, "epoch", epoch))
            permutation = torch.randperm(n_blocks, generator=generator)
        rows.append(permutation[place])
    return torch.stack(rows)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Several processes without a GPU are processes on the CPU, which Accelerate wants to be told."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.accumulation,
        cpu=launched > 1 and not torch.accelerator.is_available(),
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"WORLD_SIZE={launched}, but Accelerate runs {accelerator.num_processes} processes: each would train alone."
        )
    if accelerator.distributed_type not in DATA_PARALLEL:
        raise ValueError(
            f"distributed_type={accelerator.distributed_type.value}: this version trains with DDP or in one process."
        )
    return accelerator


def start_logging(output: Path, accelerator: Accelerator) -> None:
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if accelerator.is_main_process:
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
        handlers = [logging.StreamHandler(), logging.FileHandler(output / "train.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    accelerator.wait_for_everyone()  # the folder is there


def drop_later_metrics(file: Path, step: int) -> None:
    """What a killed run logged after its last checkpoint will be logged again; a half-written line goes, too."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # only the last line can be half there
        if record["step"] <= step and not any(name.startswith("final_") for name in record):
            kept.append(line + "\n")
    beside = file.with_suffix(".partial")
    beside.write_text("".join(kept))
    beside.replace(file)


def all_checkpoints(output: Path) -> list[Path]:
    return sorted((output / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def last_checkpoint(output: Path) -> Path | None:
    checkpoints = all_checkpoints(output)
    return checkpoints[-1] if checkpoints else None


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """`--config FILE` stands for its fields as flags, before those on the command line, which win."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(argv)
    flags: list[str] = []
    if known.config is not None:
        fields = yaml.safe_load(known.config.read_text())
        if not isinstance(fields, dict):
            raise ValueError(f"config={known.config} must hold fields and values, such as those in configs/.")
        flags = [part for name, value in fields.items() if value is not None for part in (f"--{name}", str(value))]
    parser = HfArgumentParser(
        [ModelArguments, DataArguments, TrainingArguments],
        description=(__doc__ or "").split("\n")[0],
        epilog="--config FILE: a YAML file of these fields, which flags override.",
        allow_abbrev=False,
    )
    model_args, data_args, args = parser.parse_args_into_dataclasses(flags + rest)
    steps = ("max_steps", "log_steps", "save_steps", "eval_steps")
    for name in (*steps, "batch_size", "accumulation", "eval_sequences", "keep_last"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}={getattr(args, name)} must be at least 1.")
    check_loss_type(args.loss_type)
    return model_args, data_args, args


if __name__ == "__main__":
    main(sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo may abort a process that leaves its group standing at exit
