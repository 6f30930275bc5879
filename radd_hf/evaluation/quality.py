# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures how good generated text is, and how much it cost.

    quality   its likelihood under a judge, a causal language model; the entropy of its tokens; distinct n-grams
    cost      network evaluations (NFE), measured and expected, and seconds

None of the first says much alone. Repetitive text is likely, so that a perplexity under a judge ("generative
perplexity") can be lowered by writing the same words again; the entropy beside it shows that within a sample
(arXiv:2409.02908, section 5.1), the distinct n-grams also from sample to sample. The likelihood is taken as follows:

    sampled ids -> text (the sampler's tokenizer) -> ids of the judge's tokenizer -> BOS before them, the rest cut off
    at the judge's context -> -log p(token | tokens before it) -> sum of nats / sum of tokens

A judge may so have any vocabulary. The training script of ML-GSAI/RADD (run_train_ddp.py, lines 200-216, with
configs/config.yaml) instead gives GPT-2 large the sampled ids themselves, whose vocabulary is the same; scores them
from the second on, for lack of a BOS; exponentiates the mean of each sample and averages these perplexities, over whole
batches of 16 samples and then over batches. For samples of one length that average is never below the perplexity of
the mean, which is reported here (Jensen's inequality), and a single odd sample can dominate it.

Shapes: S texts or samples, B batch of them, L length, K distinct tokens, V vocabulary of the judge.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..hub.loading import load_whole
from ..kernels_radd import evaluation_mode
from ..likelihood import NatsPerToken, check_integer_seed
from ..noise_radd import expected_evaluations, get_noise
from ..randomness_radd import sample_generators, text_seed
from ..ranges import check_count
from ..settings_radd import GRID_METHODS, METHODS, is_integer
from ..text_radd import encode_text

# The n of the distinct n-grams that are reported.
N_GRAMS = (1, 2, 3)


# ---------------------------------------------------------------------------------------------------------
# Diversity
# ---------------------------------------------------------------------------------------------------------


def token_entropy(sequences: Iterable[Tensor]) -> float:
    """Computes the entropy of the token frequencies of a sample, in nats, averaged over the samples.

    For each sample -sum_k p_k log p_k with the natural logarithm, p_k being the share of its L tokens that are the
    token k: 0 if all are the same, log L if no two are. So it depends on L, and compares samples of one length. It is
    the "sentence entropy" of arXiv:2409.02908 (section 5.1, defined in appendix H.1).

    Args:
        sequences: (L,) tensors of ids, each of its own length, or one (S, L) tensor.

    Raises:
        ValueError: for no sequences, an empty one, or one that is not (L,).
    """
    entropies = []
    for index, sequence in enumerate(sequences):
        if sequence.dim() != 1 or len(sequence) == 0:
            raise ValueError(f"sequences[{index}] must be (L,) with L >= 1; its shape is {tuple(sequence.shape)}.")
        counts = sequence.cpu().unique(return_counts=True)[1]  # (K,) of the K different tokens
        entropies.append(float(torch.special.entr(counts.double() / len(sequence)).sum()))
    if not entropies:
        raise ValueError("sequences must hold at least one sequence; got none.")
    return math.fsum(entropies) / len(entropies)


def distinct_n(sequences: Iterable[Tensor], n: int) -> float:
    """Computes distinct n-grams / n-grams over all samples together, in (0, 1].

    Pooled: an n-gram that two samples share counts once, so that samples which resemble one another show, as they do
    not in [`token_entropy`]. An n-gram lies within one sample. The measure is that of arXiv:1510.03055, which divides
    by the number of tokens; dividing by that of n-grams, the same for n = 1, lets 1 be reached whatever n. It falls
    with the amount of text (arXiv:2202.13587): compare equally many samples of equal length alone.

    Args:
        sequences: (L,) tensors of ids, each of its own length, or one (S, L) tensor. One of fewer than n has none.

    Raises:
        ValueError: for n below 1, a sequence that is not (L,), or no n-gram at all.
    """
    check_count("n", n)
    grams = []
    for index, sequence in enumerate(sequences):
        if sequence.dim() != 1:
            raise ValueError(f"sequences[{index}] must be (L,); its shape is {tuple(sequence.shape)}.")
        if len(sequence) >= n:
            grams.append(sequence.cpu().unfold(0, n, 1))  # (L - n + 1, n)
    if not grams:
        raise ValueError(f"sequences must hold at least one sequence of n={n} tokens or more.")
    pooled = torch.cat(grams)
    return len(pooled.unique(dim=0)) / len(pooled)


# ---------------------------------------------------------------------------------------------------------
# Likelihood under a judge
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement(NatsPerToken):
    """The score of texts under a judge model; its error is that of the choice of texts, nan for a single text.

    A token is one of the judge's, and so figures of different judges do not compare.
    """

    n_tokens: int  # scored
    n_texts: int
    n_truncated: int  # texts that went on where the judge's context ended
    n_empty: int = 0  # texts without a token to score, which are left out and not among n_texts

    def to_dict(self) -> dict[str, float]:
        return asdict(self) | {"perplexity": self.perplexity, "perplexity_error": self.perplexity_error}


JUDGES = (
    "It must be a folder with a causal language model and its tokenizer, the name of one on the Hub, or a .gguf file "
    "in either."
)


def load_judge(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model, in evaluation mode and in float32 on the CPU, and its tokenizer.

    Args:
        name: a folder or a repository of the Hub; or a GGUF file in one, FOLDER/FILE.gguf, whose quantised weights
            are expanded, and which takes the package gguf. Code that it brings along is not run.

    Raises:
        ValueError: for what cannot be loaded, weights that are missing or not finite, and a model that predicts a token
            from later ones (as BERT does, which `AutoModelForCausalLM` accepts with a warning).
    """
    source, settings = name, dict[str, Any](trust_remote_code=False)
    if name.endswith(".gguf"):
        source, settings["gguf_file"] = str(Path(name).parent), Path(name).name
    try:
        config = AutoConfig.from_pretrained(source, **settings)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"transformers has no causal language model of type {config.model_type!r}")
        tokenizer = AutoTokenizer.from_pretrained(source, **settings)
    except Exception as error:  # absent, damaged or foreign files can end in any
        raise ValueError(f"judge={name!r} cannot be loaded: {_root_cause(error)} {JUDGES}") from error
    settings |= {"config": config, "dtype": torch.float32}
    model = load_whole(
        AutoModelForCausalLM, source, f"judge={name!r}", others_may_be_there=True, advice=JUDGES, **settings
    )
    if not _is_causal(model.eval()):
        raise ValueError(f"judge={name!r} is no causal language model: its predictions depend on the tokens after.")
    return model, tokenizer


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ") + "."


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Tells whether other tokens later leave the predictions before them as they are, but for rounding."""
    first, second = model(input_ids=torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2]])).logits.float()  # (4, V) each
    before, there = (first - second)[:2].abs().max(), (first - second)[2:].abs().max()
    return bool(before <= 1e-3 * there)


@torch.no_grad()
def judge(
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    eos_token: str | None = None,
) -> Judgement | None:
    """Computes the negative log-likelihood of `texts` under a judge model; the head of this file explains it.

    Every scored token counts once, whatever text it is in, and the result does not depend on the batch size. The first
    token of a text is scored after the tokenizer's BOS; if that has none, it is context only. What spells a special
    token of the judge is read as its characters.

    The standard error is that of the ratio sum of nats / sum of tokens, the texts being independent draws, by the
    delta method: with r_i = nats_i - nats_per_token * tokens_i, the square root of S / (S - 1) * sum r_i^2, divided by
    the sum of tokens.

    Args:
        texts: S texts, decoded by the tokenizer of the model that wrote them.
        model: the judge, on any device. Its forward makes (B, L, V) logits in its own dtype, which `batch_size`
            bounds; the log-softmax is taken in float32, of one text at a time.
        max_length: how many ids of a text, BOS included, are read; at most, and by default, the judge's
            max_position_embeddings (where it has such a limit).
        eos_token: how the writer's end of a document is spelled in `texts`; the judge reads its own EOS there, or an
            empty line if it has none. None: texts are read as they are.

    Returns:
        None if no text has a token to score. A text without one, an empty sample say, is left out and counted.

    Raises:
        ValueError: for no texts, `batch_size` or `max_length` out of range.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts must be a list of at least one text; got {texts!r}.")
    check_count("batch_size", batch_size)
    limit = _limit(model, max_length)
    encoded = _encode(texts, tokenizer, eos_token)
    whole = [ids for ids in encoded if len(ids) > 1]  # without a BOS the first token is context alone
    if not whole:
        return None
    rows = [torch.tensor(ids[:limit]) for ids in whole]
    n_tokens = torch.tensor([len(row) - 1 for row in rows])  # (S,) scored: all but the first id, BOS or context
    nats = torch.zeros(len(rows), dtype=torch.float64)  # (S,)
    by_length = n_tokens.argsort()  # so that little is padding
    with evaluation_mode(model):
        for batch in by_length.split(batch_size):
            nats[batch] = _nats([rows[index] for index in batch], model)

    total = int(n_tokens.sum())
    nats_per_token = float(nats.sum()) / total
    return Judgement(
        nats_per_token=nats_per_token,
        standard_error=_ratio_error(nats, n_tokens, nats_per_token),
        n_tokens=total,
        n_texts=len(rows),
        n_truncated=sum(len(row) < len(ids) for row, ids in zip(rows, whole, strict=True)),
        n_empty=len(texts) - len(whole),
    )


def _limit(model: PreTrainedModel, max_length: int | None) -> int | None:
    """Returns how many ids of a text are read; None: all."""
    context = getattr(model.config, "max_position_embeddings", None)
    if max_length is None:
        return context
    if not is_integer(max_length) or max_length < 2 or (context is not None and max_length > context):
        at_most = "" if context is None else f" and at most {context}, the judge's context"
        raise ValueError(f"max_length={max_length!r} must be at least 2{at_most}.")
    return max_length


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, eos_token: str | None = None) -> list[list[int]]:
    """Returns the judge model's ids of each text, after BOS if its tokenizer has one."""
    # Some tokenizers add a BOS of themselves, others (GPT-2's) have one and do not.
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = []
    for text in texts:
        if eos_token and tokenizer.eos_token_id is None:
            text = text.replace(eos_token, "\n\n")
        documents = encode_text(text.split(eos_token) if eos_token else [text], tokenizer)
        row = [token for ids in documents for token in (tokenizer.eos_token_id, *ids)]
        rows.append([*bos, *row[1:]])  # EOS between documents
    return rows


def _nats(rows: list[Tensor], model: PreTrainedModel) -> Tensor:
    """Computes (B,) float64, the -log-likelihood of each row of ids given its first."""
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(rows, batch_first=True).to(model.device)  # (B, L), padded on the right with an id, 0
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(model.device)
    # No cache of keys and values: for GPT-2 large it is larger than the logits.
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits  # (B, L, V)
    nats = torch.zeros(len(rows), dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        nll = F.cross_entropy(logits[row, : length - 1].float(), input_ids[row, 1:length], reduction="none")
        nats[row] = nll.cpu().double().sum()
    return nats


def _ratio_error(nats: Tensor, n_tokens: Tensor, ratio: float) -> float:
    """Computes the standard error of ratio = sum of nats / sum of tokens, (S,) each, over independent texts."""
    n_texts = len(nats)
    if n_texts == 1:
        return math.nan
    residuals = nats - ratio * n_tokens  # (S,) nats, of sum zero
    return math.sqrt(n_texts / (n_texts - 1) * float(residuals.square().sum())) / int(n_tokens.sum())


# ---------------------------------------------------------------------------------------------------------
# Samples, what they cost, and the figures of a text
# ---------------------------------------------------------------------------------------------------------


def expected_nfe(config: Any, method: str, steps: int | None, n_masked: int) -> float:
    """Computes the mean number of network evaluations of a row with `n_masked` masks, by any method of `generate`.

    On a grid [`noise_radd.expected_evaluations`]; else, with certainty, the number of events: one a mask for
    "first_hitting", and for "ordered" as many as `steps` (None: one a mask), but not more than there are masks.

    Args:
        config: of the model, which names the noise.

    Raises:
        ValueError: for an unknown method, or a grid without `steps`.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}.")
    check_count("n_masked", n_masked, least=0)
    if steps is not None:
        check_count("steps", steps)
    if method in GRID_METHODS:
        if steps is None:
            raise ValueError(f"steps=None: method={method!r} has a grid of so many steps.")
        return expected_evaluations(get_noise(config), method, steps, n_masked)
    return float(n_masked if method == "first_hitting" or steps is None else min(steps, n_masked))


@dataclass(frozen=True)
class Samples:
    """The samples of a model, and their cost."""

    ids: Tensor  # (S, L)
    evaluations: Tensor  # (S,) network evaluations of each sample, NFE
    seconds: float  # until all were written, by the slowest process

    @property
    def nfe(self) -> float:
        return float(self.evaluations.double().mean())

    @property
    def nfe_error(self) -> float:
        """Returns the standard error of the mean; nan for one sample."""
        return float(self.evaluations.double().std()) / math.sqrt(len(self.evaluations))

    @property
    def seconds_per_sample(self) -> float:
        return self.seconds / len(self.ids)


def write_samples(
    model: Any,
    n_samples: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    before_gathering: Callable[[], None] | None = None,
    **settings: Any,
) -> Samples:
    """Generates S samples by `generate`, on the CPU.

    Sample i has the generator of `generate(seed=)`: the same text whatever the batch size and the number of processes,
    as far as the network's logits are the same. So methods and steps that are compared with one seed are
    compared with the same random numbers, and those of one distribution generate the same.

    Args:
        n_samples: S.
        accelerator: its processes, all of which must call, share the samples; each gets all of them.
        before_gathering: called in every process after its share; where it raises in all, nothing is put together.
        settings: for [`RaddGenerationMixin.generate`]: `length`, `method`, `steps`, ... Those that the model has saved
            are set aside.

    Raises:
        ValueError: for `n_samples` or `batch_size` below 1, and for what `generate` refuses.
    """
    n_samples, batch_size = check_count("n_samples", n_samples), check_count("batch_size", batch_size)
    seed = check_integer_seed(seed)
    first, stride = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    mine = range(first, n_samples, stride)
    written: list[tuple[int, list[int], int]] = []
    started = time.perf_counter()
    for start in range(0, len(mine), batch_size):
        batch = mine[start : start + batch_size]
        output = model.generate(
            generator=sample_generators(text_seed(seed), batch),
            num_return_sequences=len(batch),
            return_dict_in_generate=True,
            generation_config={"exact": True},  # the model's saved settings play no part
            **settings,
        )
        written += zip(batch, output.sequences.tolist(), output.num_function_evaluations.tolist(), strict=True)
    seconds = time.perf_counter() - started
    if before_gathering is not None:
        before_gathering()
    if stride > 1:
        written, seconds = gather_object(written), max(gather_object([seconds]))
    _, ids, evaluations = zip(*sorted(written), strict=True)
    return Samples(torch.tensor(ids), torch.tensor(evaluations), seconds)


def spread_rows(rows: Sequence[Tensor], count: int) -> Tensor:
    """Returns (count, L) rows of a text, evenly spread over it, to compare samples with.

    Raises:
        ValueError: for a text of fewer rows.
    """
    if not (is_integer(count) and 1 <= count <= len(rows)):
        raise ValueError(f"count={count!r} must be at least 1 and at most the rows of the text, {len(rows)}.")
    return torch.stack([rows[index * len(rows) // count] for index in range(count)])


def text_figures(
    ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    judged_by: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    *,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Computes all figures of this file for texts of equal length, in a form for JSON.

    "token_entropy_error" is the standard error of that mean over the texts; "judgement", [`Judgement.to_dict`].

    Args:
        ids: (S, L), S >= 2, of `tokenizer`, which decodes them for the judge, special tokens and spaces as they are.
        judged_by: what [`load_judge`] gives; None: "judgement" is None, as it is if all texts are empty.
        batch_size: texts in a forward of the judge.
    """
    deviation = torch.tensor([token_entropy([row]) for row in ids], dtype=torch.float64).std()
    error = float(deviation) / math.sqrt(len(ids))
    figures: dict[str, Any] = {"token_entropy": token_entropy(ids), "token_entropy_error": error}
    figures |= {f"distinct_{n}": distinct_n(ids, n) for n in N_GRAMS if n <= ids.shape[1]}
    figures["judgement"] = None
    if judged_by is not None:
        texts = tokenizer.batch_decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        judgement = judge(texts, *judged_by, batch_size=batch_size, eos_token=cast(str | None, tokenizer.eos_token))
        figures["judgement"] = judgement and judgement.to_dict()
    return figures
