# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Train RADD.

    accelerate launch train_accelerate.py --config configs/austen.yaml --loss_type lambda_DCE --output_dir runs/austen

Every field of the YAML can be given on the command line, which wins. Started again with the same output
directory, the run goes on from its last checkpoint. Everything random is a function of the seed and the step.
"""

import json
import logging
import math
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import AutoTokenizer, HfArgumentParser, get_scheduler

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.data import add_mask_token, encode, fingerprint, load_documents, pack, split, train_tokenizer
from radd_hf.ema import make_ema
from radd_hf.likelihood import estimate_likelihood
from radd_hf.losses import LOSS_TYPES, draw_masks
from radd_hf.noise_radd import get_noise

logger = logging.getLogger("radd_hf.train")


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


@dataclass
class TrainingArguments:
    output_dir: str = "runs/radd"
    loss_type: str = field(default="lambda_DCE", metadata={"help": f"one of {LOSS_TYPES}"})
    max_steps: int = 400_000
    batch_size: int = field(default=512, metadata={"help": "sequences in one optimizer step"})
    learning_rate: float = 3e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    lr_schedule: str = field(
        default="constant_with_warmup", metadata={"help": "a scheduler of transformers, or linear"}
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
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError(f"num_processes={accelerator.num_processes}: this version trains in one process.")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    output = Path(args.output_dir)
    (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(output / "train.log")],
    )

    # Text to blocks
    documents = load_documents(data_args.dataset, "train")
    held_out = load_documents(data_args.dataset, "validation")
    last = last_checkpoint(output)
    if last is not None:
        tokenizer = AutoTokenizer.from_pretrained(last)
    elif data_args.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(data_args.tokenizer)
    else:
        tokenizer = train_tokenizer(documents, data_args.vocab_size)
    mask_token_id = add_mask_token(tokenizer)
    blocks = pack(encode(documents, tokenizer), data_args.length)  # (S, L)
    validation = split(encode(held_out, tokenizer), data_args.length)
    held_out_bytes = sum(len(text.encode()) for text in held_out)

    # Network, optimizer, average
    config = RaddConfig(
        vocab_size=len(tokenizer),
        mask_token_id=mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=data_args.length,
        attn_implementation=args.attn_implementation,
        **asdict(model_args),
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
    ema = make_ema(model, args.ema_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler, ema)

    # What must be the same for a run to go on
    identity = {"data": fingerprint(blocks), "config": config.to_diff_dict(), "seed": args.seed, "loss": args.loss_type}
    step = 0
    if last is not None:
        if json.loads((last / "state" / "identity.json").read_text()) != json.loads(json.dumps(identity)):
            raise ValueError(f"output_dir={output} holds a run with another model, data set, loss or seed.")
        accelerator.load_state(last / "state")
        step = int(last.name.removeprefix("step_"))
        logger.info("resumed from %s", last)
    resolved = asdict(model_args) | asdict(data_args) | asdict(args)
    (output / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    logger.info("%s parameters; %s blocks of %s tokens", f"{model.num_parameters():,}", *blocks.shape)

    def save(step: int) -> None:
        """Written beside and renamed: a folder with a step's name is whole."""
        target = output / "checkpoints" / f"step_{step}"
        partial = target.with_name(f"partial_{step}")
        shutil.rmtree(partial, ignore_errors=True)
        ema.module.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        accelerator.save_state(partial / "state")
        (partial / "state" / "identity.json").write_text(json.dumps(identity))
        partial.replace(target)
        for old in all_checkpoints(output)[: -args.keep_last]:
            shutil.rmtree(old)

    def evaluate(sequences: list[torch.Tensor], n_bytes: int | None = None) -> dict[str, float]:
        with accelerator.autocast():
            result = estimate_likelihood(
                ema.module, sequences, passes=args.eval_passes, batch_size=64, seed=args.seed, n_bytes=n_bytes
            )
        return result.to_dict()

    def log(**figures: float) -> None:
        with (output / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")
        logger.info(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items()))

    noise = get_noise(config)
    model.train()
    nats, tokens, started = 0.0, 0, time.perf_counter()
    while step < args.max_steps:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        torch.manual_seed(args.seed * 1_000_003 + step)  # dropout
        x0 = blocks[batch_rows(step, args.batch_size, len(blocks), args.seed)].to(accelerator.device)  # (B, L)
        masks = draw_masks(args.loss_type, args.batch_size, data_args.length, noise, generator)
        outputs = model(**masks.apply(x0, mask_token_id))  # in autocast, as `prepare` arranged
        accelerator.backward(outputs.loss)
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ema.update_parameters(accelerator.unwrap_model(model))
        step += 1

        nats, tokens = nats + outputs.loss.item() * args.batch_size, tokens + x0.numel()
        if not math.isfinite(nats):
            raise FloatingPointError(f"the loss is {outputs.loss.item()} at step {step}; nothing was saved after it.")
        if step % args.log_steps == 0:
            seconds = time.perf_counter() - started
            log(
                step=step,
                nats_per_token=nats / tokens,
                lr=scheduler.get_last_lr()[0],
                tokens_per_second=tokens / seconds,
            )
            nats, tokens, started = 0.0, 0, time.perf_counter()
        if step % args.eval_steps == 0:
            scored = evaluate(validation[: args.eval_sequences])
            log(step=step, validation_nats_per_token=scored["nats_per_token"], error=scored["standard_error"])
            started = time.perf_counter()
        if step % args.save_steps == 0 or step == args.max_steps:
            save(step)
    log(step=step, **{f"final_{name}": value for name, value in evaluate(validation, held_out_bytes).items()})


def batch_rows(step: int, batch_size: int, n_blocks: int, seed: int) -> torch.Tensor:
    """Rows (B,) of one optimizer step: a new permutation every epoch, as a function of the step alone."""
    rows = []
    for sample in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(sample, n_blocks)
        if not rows or place == 0:
            permutation = torch.randperm(n_blocks, generator=torch.Generator().manual_seed(seed * 7919 + epoch))
        rows.append(permutation[place])
    return torch.stack(rows)


def all_checkpoints(output: Path) -> list[Path]:
    return sorted((output / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def last_checkpoint(output: Path) -> Path | None:
    checkpoints = all_checkpoints(output)
    return checkpoints[-1] if checkpoints else None


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """`--config FILE` stands for its fields as flags, before those on the command line, which win."""
    flags: list[str] = []
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise ValueError("--config must be followed by the path of a YAML file.")
        for name, value in yaml.safe_load(Path(argv[at + 1]).read_text()).items():
            flags += [] if value is None else [f"--{name}", str(value)]
        argv = argv[:at] + argv[at + 2 :]
    parser = HfArgumentParser([ModelArguments, DataArguments, TrainingArguments], description=__doc__.split("\n")[0])
    return parser.parse_args_into_dataclasses(flags + argv)


if __name__ == "__main__":
    main(sys.argv[1:])
