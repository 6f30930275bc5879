# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Trains a RADD model.

    accelerate launch train_accelerate.py --config configs/austen.yaml --loss_type lambda_DCE --output_dir runs/austen

A flag on the command line overrides the field of the YAML file. Started again with the same output_dir, the run
resumes from its last checkpoint. Everything random is a function of the seed, the step and the index of a row in the
step. So neither a restart nor the number of processes changes what is drawn.

Shapes: B rows of an optimizer step, b rows of them in one forward pass, L length.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase, get_scheduler

from .. import RaddConfig, RaddForMaskedLM
from ..data.blocks import Blocks, ShuffledBlocks, StreamedBlocks, bytes_of
from ..data.collator import DiffusionCollator
from ..data.documents import (
    add_mask_token,
    check_text,
    load_documents,
    load_validation,
    stream_fingerprint,
    tokenize,
    train_tokenizer,
    vocabulary_with_mask,
)
from ..endings import Stopped, visible
from ..evaluation.perplexity import table
from ..evaluation.quality import load_judge
from ..hub.loading import check_tokenizer, load_config, load_model, load_tokenizer
from ..hub.runs import generate_command, newest_model
from ..kernels_radd import compile_trunk
from ..modeling_radd import RaddLayer, RaddModel
from ..processes import make_accelerator, on_main, on_terminal, silence_progress_bars
from ..randomness_radd import stream_seed
from ..results import replace_text
from .adapters import add_adapters
from .arguments import VOCAB_SIZE, DataArguments, ModelArguments, TrainingArguments, parse_arguments, trackers
from .averages import Ema
from .checkpoints import find_checkpoint, remove_leftovers, set_aside_after
from .lock import exclusive
from .memory import check_memory
from .peers import Peers
from .prepare import Preparation, Step, to_device
from .restart import check_settings, restoring
from .run import Run, drop_later_metrics
from .sharding import by_deepspeed, fsdp_skeleton, gather_whole, prepare_sharding, sharding_of
from .stops import TO_SAVE, Stops, name_of

logger = logging.getLogger("radd_hf.train")

LOG_FORMAT = "%(asctime)s %(message)s"
# Consecutive steps that fp16 may skip. Its loss scale begins at 2^16; after so many halvings nothing can overflow.
MOST_OVERFLOWS = 40
# The arguments of the model that are fields of its configuration.
CONFIG_FIELDS = {entry.name for entry in fields(RaddConfig)}
# Those that affect training and not the weights. They may differ from `init_from`.
FREE_SETTINGS = ("hidden_dropout", "noise_type")


def main(argv: list[str]) -> None:
    model_args, data_args, args = parse_arguments(argv)
    output = Path(args.output_dir)
    with Stops() as stops:
        accelerator = accelerator_for(args)
        peers = stops.peers = Peers(accelerator, timedelta(minutes=args.timeout))
        with peers.naming_the_missing(), exclusive(output, peers), logging_to(output, accelerator):
            run_training(model_args, data_args, args, accelerator, peers, stops)


def run_training(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    accelerator: Accelerator,
    peers: Peers,
    stops: Stops,
) -> None:
    forwards_of_a_step(
        args.batch_size, accelerator.num_processes, cast(int, args.accumulation), 0
    )  # raises a ValueError if the batch cannot be divided
    last = on_main(accelerator, lambda: find_checkpoint(Path(args.output_dir), args.strict))
    if model_args.init_from is not None:
        named = model_args.init_from
        model_args.init_from = on_main(accelerator, lambda: newest_model(named, "init_from"))
    base = None if model_args.init_from is None else load_config(model_args.init_from, argument="init_from")
    settings = resolved_settings(model_args, data_args, args, base)
    if last is not None:
        check_settings(last, settings)
    if base is not None:
        check_base(model_args, base)
    if args.attn_implementation == "flex_attention" and accelerator.device.type == "cpu":
        raise ValueError("attn_implementation='flex_attention' does not train on a CPU: use sdpa or eager.")
    tokenizer = named_tokenizer(model_args, data_args, base, last)
    check_memory_of_a_step(model_args, data_args, args, base, tokenizer, accelerator)
    with peers.first_of_each_machine():  # it tokenises first, and the others read its cache
        data = load_data(data_args, args, base, tokenizer)
    run = build(model_args, data_args, args, base, data, accelerator, settings, stops)
    if last is not None:
        run.resume(last)
    judge = None if args.judge is None or not accelerator.is_main_process else load_judge(args.judge)
    peers.wait()  # the first process may have to download a judge model
    logged = begin(run)
    if args.judge is None and args.n_samples:
        logger.info("no --judge: samples get a token entropy, but no generative perplexity")
    peers.wait()  # the first process may have to connect to a tracker
    stops.training_begins()
    stopped, figures = None, dict[str, Any]()
    try:
        with deterministic(True) if args.deterministic else nullcontext():
            train(run, data, args, judge, logged)
        started, n_bytes = time.perf_counter(), bytes_of(data.validation, data.tokenizer)
        figures = run.evaluate(data.validation, args.eval_passes, n_bytes, shown=True)
        run.log(**{f"final_{name}": value for name, value in figures.items()})
        figures["seconds"] = time.perf_counter() - started
    except Stopped as stop:
        where = f"stopped by {name_of(stop.exit_status)} at step {run.step}; checkpoints/step_{run.step} has it"
        logger.info(where)
        stopped = Stopped(where if accelerator.is_main_process else "", stop.exit_status)
    for tracker in accelerator.trackers:
        tracker.finish()
    if stopped is not None:
        peers.wait()  # a launcher ends all processes as soon as one has ended
        raise stopped
    if accelerator.is_main_process:
        print(summary(run, data, data_args, figures))


def check_base(model_args: ModelArguments, base: RaddConfig) -> None:
    """Raises a ValueError if `init_from` has other sizes than the arguments, or weights that cannot be loaded.

    It loads the weights only as a check, before the text is read, because that may take long.
    """
    for name, value in given_settings(model_args).items():
        if name not in FREE_SETTINGS and value != getattr(base, name):
            raise ValueError(
                f"{name}={value!r} must be {getattr(base, name)!r}, as in init_from={model_args.init_from!r}."
            )
    load_model(cast(str, model_args.init_from), argument="init_from")


def given_settings(model_args: ModelArguments) -> dict[str, Any]:
    return {name: value for name, value in asdict(model_args).items() if value is not None and name in CONFIG_FIELDS}


def resolved_settings(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, base: RaddConfig | None
) -> dict[str, Any]:
    """Returns all arguments. Those of the model that were left out come from `init_from` or the paper's model."""
    settings = asdict(model_args) | asdict(data_args) | asdict(args)
    config = base or RaddConfig()
    said = {name: getattr(config, name) for name in CONFIG_FIELDS & settings.keys() if settings[name] is None}
    if data_args.length is None:
        said["length"] = config.max_position_embeddings
    if base is None and data_args.vocab_size is None:  # None: the size of the named tokenizer
        said["vocab_size"] = VOCAB_SIZE if data_args.tokenizer is None else None
    return settings | said


def check_memory_of_a_step(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    base: RaddConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
    accelerator: Accelerator,
) -> None:
    """Refuses a step that cannot fit in memory, before any text is read. It does not check a sharded model."""
    if args.force or sharding_of(accelerator) != "none":
        return
    start, given = base or RaddConfig(), given_settings(model_args)
    changes: dict[str, Any] = {"max_position_embeddings": data_args.length or start.max_position_embeddings}
    if base is None:
        made = data_args.vocab_size or VOCAB_SIZE
        vocab_size = made if tokenizer is None else vocabulary_with_mask(tokenizer, add_mask_token(tokenizer))
        changes |= {"vocab_size": vocab_size, "mask_token_id": None, "intermediate_size": None}
    config = RaddConfig.from_dict(start.to_dict() | changes | given)
    config._attn_implementation = args.attn_implementation
    check_memory(
        config,
        batch_size=args.batch_size,
        accumulation=cast(int, args.accumulation),
        processes=accelerator.num_processes,
        checkpointing=args.gradient_checkpointing,
        half=accelerator.mixed_precision != "no",
        adapters=model_args.lora_rank > 0,
        device=accelerator.device,
    )


@dataclass
class Data:
    tokenizer: PreTrainedTokenizerBase
    blocks: ShuffledBlocks | StreamedBlocks  # the training text
    validation: Blocks  # (L,) each; the last one may be shorter
    length: int
    identity: str  # the fingerprint of the training text


def load_data(
    data_args: DataArguments,
    args: TrainingArguments,
    base: RaddConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Data:
    """Turns text into blocks. It trains a tokenizer on the text if there is none."""
    column, workers = data_args.text_column, data_args.tokenizing_workers
    source: dict[str, Any] = {
        "config": data_args.dataset_config,
        "text_column": column,
        "streaming": data_args.streaming,
    }
    if data_args.validation_dataset is None:
        documents = load_documents(data_args.dataset, "train", held_out=data_args.held_out, **source)
        held_out = load_documents(data_args.dataset, "validation", held_out=data_args.held_out, **source)
    else:
        documents = load_documents(data_args.dataset, "train", held_out=0, **source)
        held_out = load_validation(
            data_args.validation_dataset,
            config=data_args.validation_config,
            text_column=column,
            argument="validation_dataset",
        )
    if tokenizer is None:
        texts = (text for batch in documents.iter(1000) for text in batch["text"])
        size = data_args.vocab_size
        tokenizer = train_tokenizer(texts, size or VOCAB_SIZE, exact=size is not None)
    length = (base or RaddConfig()).max_position_embeddings if data_args.length is None else data_args.length

    if isinstance(held_out, IterableDataset):
        read = Dataset.from_dict({"text": [document["text"] for document in held_out]})
        held_out = check_text(read, f"the held-out part of dataset={data_args.dataset!r}")
    spelled = data_args.special_tokens_in_text
    validation = Blocks(tokenize(held_out, tokenizer, workers, spelled), length, tail=True)
    if isinstance(documents, IterableDataset):
        stream = StreamedBlocks(data_args.dataset, documents, tokenizer, length, args.batch_size, args.seed, spelled)
        identity = stream_fingerprint(data_args.dataset, data_args.dataset_config)
        return Data(tokenizer, stream, validation, length, identity)
    blocks = Blocks(tokenize(documents, tokenizer, workers, spelled), length)
    logger.info("%s tokens in %s blocks of %s", f"{blocks.n_tokens:,}", f"{len(blocks):,}", length)
    shuffled = ShuffledBlocks(blocks, args.batch_size, args.seed)
    return Data(tokenizer, shuffled, validation, length, blocks.fingerprint())


def named_tokenizer(
    model_args: ModelArguments, data_args: DataArguments, base: RaddConfig | None, last: Path | None
) -> PreTrainedTokenizerBase | None:
    """Returns the last checkpoint's tokenizer if a run resumes, else the named one. None: train one on the text.

    Raises:
        ValueError: if the tokenizer does not fit `init_from`, or `vocab_size` is not the tokenizer's size.
    """
    if last is not None:
        with restoring(last):
            return check_ends(load_tokenizer(str(last), trust_remote_code=False))
    name = data_args.tokenizer or model_args.init_from
    if name is None:
        if data_args.streaming:
            raise ValueError("streaming=True needs tokenizer=: no tokenizer is trained on a stream.")
        return None
    tokenizer = check_ends(load_tokenizer(name))
    mask = add_mask_token(tokenizer, None if base is None else base.mask_token_id)
    size = vocabulary_with_mask(tokenizer, mask)
    if base is not None:
        check_tokenizer(tokenizer, base)
        size = base.vocab_size
    if data_args.vocab_size not in (None, size):
        raise ValueError(
            f"vocab_size={data_args.vocab_size} must be left out, or be {size}, the size of the vocabulary of {name!r}."
        )
    return tokenizer


def check_ends(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns the tokenizer. Raises a ValueError if it has no EOS token, or if EOS is also its mask token."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has no eos_token, but documents must end with one: set it."
        )
    if tokenizer.eos_token_id == tokenizer.mask_token_id:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has the same token, {tokenizer.eos_token!r}, as eos_token "
            "and as mask_token: give it another mask_token."
        )
    return tokenizer


def build(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    base: RaddConfig | None,
    data: Data,
    accelerator: Accelerator,
    settings: dict[str, Any],
    stops: Stops,
) -> Run:
    """Builds the network, the collator, the optimizer, the learning-rate schedule and the moving average."""
    config = make_config(model_args, data_args, args, base, data)
    collator = DiffusionCollator(
        config, args.loss_type, args.seed, data_args.random_length_fraction, data_args.separate_documents
    )
    model: Any = make_model(model_args, args, config)
    compile_model(model, args, accelerator)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    sizes = (model.num_parameters(), model.num_parameters(only_trainable=True))
    logger.info("%s parameters, %s of them trained", *(f"{size:,}" for size in sizes))
    if args.warmup_steps > args.max_steps and args.lr_schedule != "constant":
        logger.warning("the warm-up of %s steps is longer than max_steps=%s", args.warmup_steps, args.max_steps)
    optimizer = torch.optim.AdamW(
        trained,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )
    scheduler = get_scheduler(args.lr_schedule, optimizer, args.warmup_steps, args.max_steps)
    skeleton = fsdp_skeleton(model, accelerator)
    model, optimizer = accelerator.prepare(model, optimizer)
    # Made after `prepare`: the averages are then on the device of the weights, and sharded like them.
    ema = Ema(accelerator.unwrap_model(model), args.ema_decay)
    identity = {
        "model": {k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"},
        "data": data.identity,
        # DeepSpeed saves the state in its own format. In all other cases the format is the same, sharded or not.
        "sharding": sharding_of(accelerator) if by_deepspeed(accelerator) else "none",
    }
    return Run(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        skeleton=skeleton,
        blocks=data.blocks,
        collator=collator,
        tokenizer=data.tokenizer,
        output=Path(args.output_dir),
        seed=args.seed,
        settings=settings,
        identity=identity,
        stops=stops,
    )


def make_config(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    base: RaddConfig | None,
    data: Data,
) -> RaddConfig:
    """Makes the configuration: that of `init_from`, else the paper's small model, with the arguments applied."""
    if data_args.separate_documents and args.attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation={args.attn_implementation!r} cannot keep documents apart: use eager or sdpa."
        )
    given = given_settings(model_args)
    others = {
        "eos_token_id": data.tokenizer.eos_token_id,
        "max_position_embeddings": data.length,
        "attn_implementation": args.attn_implementation,
    }
    if base is None:
        mask = add_mask_token(data.tokenizer)  # for a tokenizer that cannot have a mask, the id after all others
        tokens: dict[str, Any] = {"vocab_size": vocabulary_with_mask(data.tokenizer, mask), "mask_token_id": mask}
        return RaddConfig(**given, **tokens, **others)
    changes = {name: value for name, value in given.items() if name in FREE_SETTINGS} | others
    return RaddConfig.from_dict(base.to_dict() | changes)


def make_model(model_args: ModelArguments, args: TrainingArguments, config: RaddConfig) -> nn.Module:
    set_seed(args.seed)
    model: Any
    if model_args.init_from is None:
        model = RaddForMaskedLM(config)
    else:
        model = load_model(model_args.init_from, config=config, argument="init_from")
    if args.gradient_checkpointing:
        # transformers renamed it; 5.14 has only the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if model_args.lora_rank:
        model = add_adapters(model, model_args.lora_rank, model_args.lora_alpha, model_args.lora_dropout)
    return model


def compile_model(model: nn.Module, args: TrainingArguments, accelerator: Accelerator) -> None:
    """Compiles the network for training, by default on a GPU only. Evaluation is not compiled."""
    wanted = accelerator.device.type == "cuda" or args.compile_backend is not None
    if not (wanted if args.compile is None else args.compile):
        return
    backend = args.compile_backend or "inductor"
    logger.info("compiling the network (%s): the first step may take up to a minute", backend)
    if sharding_of(accelerator) == "none":
        trunk = next(module for module in model.modules() if isinstance(module, RaddModel))
        compile_trunk(trunk, backend)
        return
    for module in model.modules():  # FSDP gathers the weights of a layer together, and no graph may cross layers
        if isinstance(module, RaddLayer):
            module.compile(backend=backend)


def begin(run: Run) -> list[str]:
    """Prepares the run folder to continue at `run.step`. Returns the names of the figures logged at that step."""
    settings = run.settings

    def tidy() -> list[str]:
        set_aside_after(run.output, run.step)
        remove_leftovers(run.output)
        replace_text(run.output / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return drop_later_metrics(run.output / "metrics.jsonl", run.step)

    logged = on_main(run.accelerator, tidy)
    run.accelerator.init_trackers("radd", {name: value for name, value in settings.items() if value is not None})
    return logged


def train(run: Run, data: Data, args: TrainingArguments, judge: tuple | None, logged: Sequence[str]) -> None:
    """Trains to the last step, or to the step at which a signal stops it.

    After a step the run logs, saves, evaluates and samples, in this order. So a stop in between loses only work that a
    restart repeats.

    Args:
        logged: the figures that `metrics.jsonl` already has for the step at which the run resumes. Other figures due
            at that step are computed first.

    Raises:
        Stopped: in all processes, after a checkpoint of the current step.
    """
    if run.step:
        look(run, data, args, judge, logged)
    process, processes = run.accelerator.process_index, run.accelerator.num_processes
    parts = forwards_of_a_step(args.batch_size, processes, cast(int, args.accumulation), process)
    started, first, seconds, tokens_seen = time.monotonic(), run.step, 0.0, 0
    device, losses, saved = run.accelerator.device, LateLosses(run, parts), run.step
    run.model.train()
    preparation = Preparation(run.blocks, run.collator, parts, args.batch_size, device, run.step, args.max_steps)
    with preparation, progress_bar(run, args) as bar:
        while run.step < args.max_steps:
            began = time.perf_counter()
            prepared = preparation.next()
            losses.add(optimizer_step(run, prepared, args))
            run.blocks_state = prepared.blocks
            tokens = run.collator.n_tokens(run.step, data.length, args.batch_size)
            run.step += 1
            run.tokens += tokens
            tokens_seen += tokens
            last = run.step == args.max_steps
            wish = run.stops.agree()
            steps = (args.log_steps, args.eval_steps, args.save_steps, args.sample_steps)
            if wish or last or any(run.step % every == 0 for every in steps):
                losses.read_all()  # before anything is saved or logged
            seconds += time.perf_counter() - began
            bar.set_postfix(
                nats_per_token=f"{losses.newest / data.length:.3f}", tokens_per_second=f"{tokens_seen / seconds:,.0f}"
            )
            bar.update()
            if run.step % args.log_steps == 0:
                rate = {"lr": run.scheduler.get_last_lr()[0], "tokens_per_second": tokens_seen / seconds}
                if device.type == "cuda":
                    rate["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9  # tensors only, so far
                left = (args.max_steps - run.step) * (time.monotonic() - started) / (run.step - first)
                nats_per_token = sum(run.nats_of_each_process()) / run.tokens
                run.log(f" ({timedelta(seconds=round(left))} left)", nats_per_token=nats_per_token, **rate)
                run.nats, run.tokens, seconds, tokens_seen = 0.0, 0, 0.0, 0
            if wish or run.step % args.save_steps == 0 or last:
                run.save(args.keep_last)
                saved = run.step
            if wish > TO_SAVE:
                raise Stopped("", wish)
            try:
                look(run, data, args, judge)
            except Stopped:
                if saved < run.step:
                    run.save(args.keep_last)
                raise


def look(run: Run, data: Data, args: TrainingArguments, judge: tuple | None, logged: Sequence[str] = ()) -> None:
    """Evaluates and samples if that is due at this step and not yet among the figures `logged`."""
    if run.step % args.eval_steps == 0 and "validation_nats_per_token" not in logged:
        figures = run.evaluate(data.validation[: args.eval_sequences], args.eval_passes)
        run.log(validation_nats_per_token=figures["nats_per_token"], standard_error=figures["standard_error"])
    due = run.step % args.sample_steps == 0 or run.step == args.max_steps
    if args.n_samples and due and "sample_token_entropy" not in logged:
        sampling = {"length": data.length, "method": args.sampling_method, "steps": args.sampling_steps}
        with deterministic(False):  # sampling needs a cumulative sum, which has no deterministic kernel on a GPU
            run.log("", **run.sample(args.n_samples, sampling, judge))


def summary(run: Run, data: Data, data_args: DataArguments, figures: dict[str, Any]) -> str:
    """Returns the end of a run as text: the table of `eval_ppl.py`, the checkpoint, and a command to try it."""
    checkpoint = str(run.output / "checkpoints" / f"step_{run.step}")
    identity = {
        "model": checkpoint,
        "dataset": data_args.validation_dataset or data_args.dataset,
        "split": "the held-out part",
        "protocol": "clean",
        "end_of_text": "after each document",
        "length": data.length,
        "estimator": figures["estimator"],
    }
    config = run.accelerator.unwrap_model(run.model).config
    return (
        f"{table(identity, figures)}\n\nThe model is in {visible(checkpoint)}. Generate text with it:\n\n"
        f"    {visible(generate_command(checkpoint, data.tokenizer, config))}"
    )


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Makes torch use kernels that give the same bits every time, or else the fastest ones."""
    fills: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), fills.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted)
    fills.fill_uninitialized_memory = False  # it helps to find mistakes, but takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        fills.fill_uninitialized_memory = filled


class LateLosses:
    """Reads the losses of a step (nats per sequence) and its gradient norm while the next step is computed.

    Reading makes the host wait for the device. So the host waits for the step before, which is nearly done, and not for
    the present one.
    """

    def __init__(self, run: Run, parts: list[range]):
        self.run, self.rows = run, [len(rows) for rows in parts]
        self.unread: list[tuple[int, Tensor]] = []  # step; losses of its forward passes, and norm
        self.overflows = 0  # consecutive steps, up to the newest, whose gradients were not finite
        self.newest = math.nan  # loss of the newest step that was read, as a mean over its forward passes

    def add(self, figures: Tensor) -> None:
        """Keeps what [`optimizer_step`] returned for the new step, and reads the figures of the step before."""
        self.read_all()
        self.unread.append((self.run.step + 1, figures))

    def read_all(self) -> None:
        """Reads all figures that are left. Raises a FloatingPointError if a loss or a gradient is not finite."""
        for step, figures in self.unread:
            *values, norm = figures.tolist()
            if not all(map(math.isfinite, values)):
                raise FloatingPointError(f"the loss is {sum(values)} at step {step}; nothing was saved after it.")
            self._check_gradient(step, norm)
            self.run.nats += sum(value * rows for value, rows in zip(values, self.rows, strict=True))
            self.newest = sum(values) / len(values)
        self.unread = []

    def _check_gradient(self, step: int, norm: float) -> None:
        """Raises a FloatingPointError if a gradient is not finite; under fp16, if many in a row are not.

        The loss scale of fp16 begins high and is halved whenever a gradient overflows. So fp16 skips some steps.
        """
        self.overflows = 0 if math.isfinite(norm) else self.overflows + 1
        if self.overflows > (0 if self.run.accelerator.scaler is None else MOST_OVERFLOWS):
            before = f" and {self.overflows - 1} steps before" if self.overflows > 1 else ""
            raise FloatingPointError(f"the gradient is {norm} at step {step}{before}; nothing was saved after it.")


def optimizer_step(run: Run, prepared: Step, args: TrainingArguments) -> Tensor:
    """Takes one step of the optimizer on this process's rows, unless a gradient is not finite.

    Returns:
        (forward passes + 1,) the loss of each forward pass, then the norm of the gradients. The device may still be
        computing them.
    """
    accelerator, model, losses, norm = run.accelerator, run.model, [], None
    for part, inputs in enumerate(prepared.forwards):
        torch.manual_seed(stream_seed(args.seed, "dropout", run.step, part, accelerator.process_index))
        with accelerator.accumulate(model):  # gradients are averaged over processes once a step
            with accelerator.autocast():  # a sharded model does not apply it by itself
                outputs = model(**to_device(inputs, accelerator.device))
            accelerator.backward(outputs.loss)
            if accelerator.sync_gradients:
                norm = as_scalar(accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm), outputs.loss)
                leave_out_if_not_finite(run, norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
        losses.append(outputs.loss.detach())
    if not accelerator.optimizer_step_was_skipped:  # fp16 skips a step when a gradient overflows
        run.scheduler.step()
        run.ema.update(accelerator.unwrap_model(model))
    return torch.stack([*losses, cast(Tensor, norm)])


def as_scalar(norm: Any, loss: Tensor) -> Tensor:
    """Returns a norm as a scalar with the loss's device and dtype. DeepSpeed gives a number, or None, taken as 0."""
    if isinstance(norm, Tensor):
        return gather_whole(norm.detach()).to(loss.device, loss.dtype)
    return loss.new_tensor(norm or 0.0)


def leave_out_if_not_finite(run: Run, norm: Tensor) -> None:
    """Makes the device keep weights and moments unchanged if the norm of the gradients is not finite.

    The host learns of the norm only a step later, so the device must decide by itself. A fused optimizer can: it reads
    `found_inf`, which `torch.amp.GradScaler` sets, too. The averages then use the weights of the step before, and
    [`LateLosses`] ends the run. Under fp16 the scaler does all this. DeepSpeed takes its step within the backward pass,
    where this cannot stop it; but nothing is saved after the step.
    """
    optimizer = getattr(run.optimizer, "optimizer", None)
    if run.accelerator.scaler is None and isinstance(optimizer, torch.optim.AdamW):
        cast(Any, optimizer).found_inf = norm.isfinite().logical_not().float()


def forwards_of_a_step(batch_size: int, processes: int, accumulation: int, process: int) -> list[range]:
    """Returns the rows of a step that this process computes, as one range for each forward pass."""
    if batch_size % (processes * accumulation):
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of {processes} processes x accumulation={accumulation}."
        )
    rows = batch_size // (processes * accumulation)
    first = [(part * processes + process) * rows for part in range(accumulation)]
    return [range(start, start + rows) for start in first]


@contextmanager
def progress_bar(run: Run, args: TrainingArguments) -> Iterator[tqdm]:
    """Shows steps and time left on the terminal of the first process. Without a terminal, the log shows the time."""
    shown = on_terminal(run.accelerator)
    redirected = logging_redirect_tqdm() if shown else nullcontext()
    bar = tqdm(total=args.max_steps, initial=run.step, unit="step", dynamic_ncols=True, disable=not shown)
    with bar, redirected:
        yield bar


def accelerator_for(args: TrainingArguments) -> Accelerator:
    if args.deterministic:  # cuBLAS reads this variable when the GPU is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    accumulation = cast(int, args.accumulation)
    accelerator = make_accelerator(
        mixed_precision=args.mixed_precision,
        accumulation=accumulation,
        timeout=timedelta(minutes=1.1 * args.timeout),  # longer than that of Peers, which names the missing process
        log_with=trackers(args.log_with) or None,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir) / "trackers")),
    )
    prepare_sharding(
        accelerator,
        rows_of_a_forward=args.batch_size // (accelerator.num_processes * accumulation),
        accumulation=accumulation,
        max_grad_norm=cast(float, args.max_grad_norm),
        mixed_precision=cast(str, args.mixed_precision),
    )
    return accelerator


@contextmanager
def logging_to(output: Path, accelerator: Accelerator) -> Iterator[None]:
    """Makes the first process log to the console and to `train.log`. It keeps handlers that were there before."""
    root, handlers = logging.getLogger(), []
    shown: list[logging.Handler] = [logging.NullHandler()]
    if accelerator.is_main_process:
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
        shown, handlers = [logging.StreamHandler()], [logging.FileHandler(output / "train.log", encoding="utf-8")]
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=shown)  # does nothing if there are handlers
    for handler in handlers:
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        root.addHandler(handler)
    logging.getLogger("radd_hf").setLevel(logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    silence_progress_bars(accelerator)
    accelerator.wait_for_everyone()  # until the folder is there
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
