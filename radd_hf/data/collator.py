# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Turns clean blocks into the arguments of one forward pass: masks, labels, weights, and the attention mask.

`train_accelerate.py` asks for the rows of a numbered step. transformers' `Trainer` calls it with lists of examples:

    collator = DiffusionCollator(model.config, loss_type="lambda_DCE", seed=0)
    trainer = Trainer(model, TrainingArguments("runs/mine", ...), train_dataset=blocks, data_collator=collator)

Both get the same draws for the same seed, step and rows. Under the Trainer a step is a batch of an epoch, numbered by
Accelerate's data loaders. So a resumed run draws what it would have drawn, and evaluations in between change nothing.

Shapes: B rows of a step, b rows of them in one forward pass, L length.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from accelerate.data_loader import SkipBatchSampler
from accelerate.state import GradientState
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..configuration_radd import RaddConfig
from ..inputs_radd import as_tensor, shown
from ..losses import check_loss_type, draw_step_masks
from ..noise_radd import get_noise
from ..randomness_radd import stream_seed


@dataclass
class LoaderPass:
    """Counts the batches that one data loader of Accelerate has asked for. The Trainer uses such loaders.

    Attributes:
        epoch: the present pass over the data.
        skipped: batches that a resumed run skips at the start of the pass.
        batches: batches of a pass without the skipped ones, or None if unknown.
        calls: batches so far in this process.
    """

    epoch: int
    skipped: int
    batches: int | None
    calls: int = 0

    @classmethod
    def of(cls, loader: Any) -> "LoaderPass":
        sampler = loader.batch_sampler
        skipped = sampler.skip_batches if isinstance(sampler, SkipBatchSampler) else 0
        # A loader that deals batches to processes is shorter than its base_dataloader, which asks for all batches.
        batches = None if isinstance(loader.dataset, IterableDataset) else len(loader.base_dataloader)
        return cls(loader.iteration, skipped, batches)

    def next(self) -> tuple[int, int]:
        """Returns the epoch of the next batch and its number in that epoch."""
        worker, calls, epoch = get_worker_info(), self.calls, self.epoch
        self.calls += 1
        first, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)  # a loader's workers take turns
        if worker is not None and self.batches is not None:
            # A worker that is kept for several epochs is not told where they begin.
            later, calls = divmod(calls, len(range(first, self.batches, workers)))
            epoch += later
        return epoch, self.skipped + first + calls * workers


class DiffusionCollator:
    """Draws the masks of one of the four training losses. The model's forward computes the loss.

    Args:
        config: the model's configuration, for its mask token and its noise.
        loss_type: t_DSE, t_DCE, lambda_DCE or k_DCE.
        seed: the seed of all draws.
        random_length_fraction: this fraction of rows is cut to a length uniform in 1 .. L and padded, so the model sees
            short texts, too.
        separate_documents: whether a token attends to the tokens of its own document only. A document ends with its
            EOS: `config.eos_token_id`, or any id of it if it is a list. Needs eager or sdpa attention.

    Raises:
        ValueError: for an unknown loss, a fraction outside [0, 1], or `separate_documents` without an EOS. A call
            raises it for blocks of several lengths, and for ids that are the mask or outside the vocabulary.
    """

    def __init__(
        self,
        config: RaddConfig,
        loss_type: str = "lambda_DCE",
        seed: int = 0,
        random_length_fraction: float = 0.0,
        separate_documents: bool = False,
    ):
        check_loss_type(loss_type)
        if not 0 <= random_length_fraction <= 1:
            raise ValueError(f"random_length_fraction={random_length_fraction} must lie in [0, 1].")
        eos = config.eos_token_id
        self.eos_token_ids = list(eos) if isinstance(eos, (list, tuple)) else [] if eos is None else [eos]
        if separate_documents and not self.eos_token_ids:
            raise ValueError(
                f"separate_documents=True needs config.eos_token_id, which ends every document; it is {eos!r}."
            )
        self.noise = get_noise(config)
        self.mask_token_id, self.vocab_size = cast(int, config.mask_token_id), config.vocab_size
        self.loss_type, self.seed = loss_type, seed
        self.random_length_fraction, self.separate_documents = random_length_fraction, separate_documents
        self.calls = 0  # calls without a data loader of Accelerate
        self.passes: WeakKeyDictionary[Any, LoaderPass] = WeakKeyDictionary()
        self.inherited: LoaderPass | None = None  # in a worker process to which the collator was sent

    def __getstate__(self) -> dict:
        """Adds the loader that asks to the pickled state. A worker that is not forked would not know it."""
        state = self.__dict__ | {"inherited": self._loader_pass()}
        del state["passes"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self.passes = WeakKeyDictionary()

    def _loader_pass(self) -> LoaderPass | None:
        loader = GradientState().active_dataloader
        if loader is None or not hasattr(loader, "iteration"):
            return self.inherited
        if loader not in self.passes or (get_worker_info() is None and self.passes[loader].epoch != loader.iteration):
            self.passes[loader] = LoaderPass.of(loader)
        return self.passes[loader]

    def rows(self, x0: Tensor, step: int, rows: range, n_rows: int) -> dict[str, Tensor]:
        """Returns the arguments of a forward pass, on the CPU.

        Args:
            x0: (b, L), clean ids.
            rows: which rows of the step they are.
            n_rows: the number of rows of the step.
        """
        return self._rows(self.seed, x0, step, rows, n_rows)

    def _rows(self, seed: int, x0: Tensor, step: int, rows: range, n_rows: int) -> dict[str, Tensor]:
        self._check(x0)
        x0, length = x0.long(), x0.shape[1]
        lengths = self._lengths(seed, step, length, n_rows)[rows.start : rows.stop]  # (b,)
        masks = draw_step_masks(self.loss_type, seed, step, rows, n_rows, lengths, length, self.noise)
        inputs = masks.apply(x0, self.mask_token_id)
        visible = torch.arange(length) < lengths[:, None]  # (b, L)
        if self.separate_documents:
            ends = torch.isin(x0, torch.tensor(self.eos_token_ids)).long()
            document = (ends.cumsum(dim=1) - ends).masked_fill(
                ~visible, -1
            )  # (b, L); an EOS belongs to the document it ends
            # (b, 1, L, L) in booleans, which suit a model of any dtype.
            inputs["attention_mask"] = document[:, None, :, None] == document[:, None, None, :]
        elif self.random_length_fraction > 0:  # also if no row is short, so a compiler sees one shape
            inputs["attention_mask"] = visible.long()
        return inputs

    def _check(self, x0: Tensor) -> None:
        """Raises a ValueError if x0 (b, L) has invalid ids. The check is on the CPU, since a GPU would have to wait."""
        if x0.is_floating_point() or x0.is_complex() or x0.dtype == torch.bool or x0.ndim != 2 or x0.numel() == 0:
            raise ValueError(f"input_ids{shown(x0)}; it must hold clean ids, (B, L) integers, at least one.")
        wrong = (x0 < 0) | (x0 >= self.vocab_size) | (x0 == self.mask_token_id)
        if bool(wrong.any()):
            row, position = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"input_ids holds {int(x0[row, position])} at row {row}, position {position}; clean ids lie in "
                f"0 .. {self.vocab_size - 1} and are not the mask, {self.mask_token_id}."
            )

    def n_tokens(self, step: int, length: int, n_rows: int) -> int:
        """Counts the tokens of all rows of a step, without padding. A loss per token divides by it."""
        return int(self._lengths(self.seed, step, length, n_rows).sum())

    def _lengths(self, seed: int, step: int, length: int, n_rows: int) -> Tensor:
        """Returns the numbers of tokens (B,) of the rows of a step."""
        lengths = torch.full((n_rows,), length)
        if self.random_length_fraction > 0:
            generator = torch.Generator().manual_seed(stream_seed(seed, "lengths", step))
            short = torch.rand(n_rows, generator=generator, dtype=torch.float32) < self.random_length_fraction
            lengths = torch.where(short, torch.randint(1, length + 1, (n_rows,), generator=generator), lengths)
        return lengths

    def __call__(self, features: list) -> dict[str, Tensor]:
        """Makes a batch of blocks, or of examples with "input_ids", of one length. Each process passes its own rows.

        Under a data loader of Accelerate, such as the Trainer's, draws are a function of (seed, epoch, batch of the
        epoch, row). In the first epoch they are those of the script's steps. Without such a loader they are a function
        of the number of the call. A worker of a DataLoader then draws from its own stream, a new one at each start.
        """
        blocks = []
        for row, each in enumerate(features):
            if isinstance(each, Mapping) and "input_ids" not in each:
                raise ValueError(f"features[{row}] has the keys {sorted(map(str, each))}; 'input_ids' must be there.")
            block = as_tensor(f"features[{row}]", each["input_ids"] if isinstance(each, Mapping) else each)
            if block.ndim != 1:
                raise ValueError(f"features[{row}]{shown(block)}; it must hold the ids of a block, (L,).")
            blocks.append(block)
        if len({len(block) for block in blocks}) != 1:
            raise ValueError(f"examples must be blocks of one length; got lengths {sorted({len(b) for b in blocks})}.")
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        worker, seed, of_loader = get_worker_info(), self.seed, self._loader_pass()
        if of_loader is not None:
            epoch, step = of_loader.next()
            seed = stream_seed(seed, "pass", epoch) if epoch else seed
        else:
            step, self.calls = self.calls, self.calls + 1
            if worker is not None:
                # worker.seed differs between processes, too, so they do not share a stratified sample.
                seed, rank, processes = stream_seed(seed, "worker", worker.seed), 0, 1
        first = rank * len(blocks)
        rows = range(first, first + len(blocks))
        return self._rows(seed, torch.stack(blocks), step, rows, processes * len(blocks))
