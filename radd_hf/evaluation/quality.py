# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the quality of generated text, and its cost.

    quality   likelihood under a judge model, which is a causal language model; entropy of the tokens; distinct n-grams
    cost      network evaluations (NFE), measured and expected, and seconds

No single figure of quality says much. Repetitive text is likely, so a sampler can lower its perplexity under a judge
model ("generative perplexity") by repeating words. The entropy shows repetition within a sample (arXiv:2409.02908,
section 5.1). The distinct n-grams also show it between samples. The likelihood is computed as follows:

    sampled ids -> text (the sampler's tokenizer) -> ids of the judge model's tokenizer -> BOS before them, cut at the
    judge model's context -> -log p(token | tokens before it) -> sum of nats / sum of tokens

So a judge model may have any vocabulary. The training script of ML-GSAI/RADD (run_train_ddp.py, lines 200-216, with
configs/config.yaml) differs. It gives the sampled ids directly to GPT-2 large, which has the same vocabulary. It scores
them from the second on, without a BOS. It exponentiates the mean of each sample and averages these perplexities, over
whole batches of 16 samples and then over batches. For samples of one length that average is never below the perplexity
of the mean, which is reported here (Jensen's inequality), and a single odd sample can dominate it.

Shapes: S texts or samples, B batch of them, L length, K distinct tokens, V vocabulary of the judge model.
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

# The reported lengths n of n-grams.
N_GRAMS = (1, 2, 3)


# ---------------------------------------------------------------------------------------------------------
# Diversity
# ---------------------------------------------------------------------------------------------------------


def token_entropy(sequences: Iterable[Tensor]) -> float:
    """Computes the entropy of the token frequencies of a sample, in nats, averaged over the samples.

    The entropy of a sample is -sum_k p_k log p_k with the natural logarithm, where p_k is the share of token k among
    its L tokens. It is 0 if all tokens are the same, and log L if all differ. It depends on L, so compare only samples
    of one length. It is the "sentence entropy" of arXiv:2409.02908 (section 5.1, defined in appendix H.1).

    Args:
        sequences: (L,) tensors of ids, each of its own length, or one (S, L) tensor.

    Raises:
        ValueError: if there are no sequences, or one is empty or not (L,).
    """
    entropies = []
    for index, sequence in enumerate(sequences):
        if sequence.dim() != 1 or len(sequence) == 0:
            raise ValueError(f"sequences[{index}] must be (L,) with L >= 1; its shape is {tuple(sequence.shape)}.")
        counts = sequence.cpu().unique(return_counts=True)[1]  # (K,)
        entropies.append(float(torch.special.entr(counts.double() / len(sequence)).sum()))
    if not entropies:
        raise ValueError("sequences must hold at least one sequence; got none.")
    return math.fsum(entropies) / len(entropies)


def distinct_n(sequences: Iterable[Tensor], n: int) -> float:
    """Computes distinct n-grams / n-grams over all samples together, in (0, 1].

    The samples are pooled: an n-gram that two samples share counts once. So the figure shows samples that resemble each
    other, which [`token_entropy`] does not. An n-gram lies within one sample. The measure is that of arXiv:1510.03055,
    but it divides by the number of n-grams and not of tokens (the same for n = 1), so it can reach 1 for every n. It
    falls with the amount of text (arXiv:2202.13587), so compare only equally many samples of equal length.

    Args:
        sequences: (L,) tensors of ids, each of its own length, or one (S, L) tensor. A sequence of fewer than n tokens
            has no n-grams.

    Raises:
        ValueError: if n is below 1, a sequence is not (L,), or there is no n-gram.
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
# Likelihood under a judge model
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement(NatsPerToken):
    """The score of texts under a judge model. The error is that of the choice of texts; it is nan for a single text.

    Tokens are those of the judge model, so figures of different judge models do not compare.
    """

    n_tokens: int  # scored tokens
    n_texts: int
    n_truncated: int  # texts longer than the judge model's context
    n_empty: int = 0  # texts without a token to score; they are left out of n_texts

    def to_dict(self) -> dict[str, float]:
        return asdict(self) | {"perplexity": self.perplexity, "perplexity_error": self.perplexity_error}


JUDGES = (
    "It must be a folder with a causal language model and its tokenizer, the name of one on the Hub, or a .gguf file "
    "in either."
)


def load_judge(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model, in evaluation mode and in float32 on the CPU, and its tokenizer.

    Args:
        name: a folder, a repository of the Hub, or a GGUF file in either, FOLDER/FILE.gguf. The quantised weights of a
            GGUF file are expanded, which needs the package gguf. Code in the folder is not run.

    Raises:
        ValueError: if the model cannot be loaded, weights are missing or not finite, or it predicts a token from later
            ones (like BERT, which `AutoModelForCausalLM` accepts with a warning).
    """
    source, settings = name, dict[str, Any](trust_remote_code=False)
    if name.endswith(".gguf"):
        source, settings["gguf_file"] = str(Path(name).parent), Path(name).name
    try:
        config = AutoConfig.from_pretrained(source, **settings)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"transformers has no causal language model of type {config.model_type!r}")
        tokenizer = AutoTokenizer.from_pretrained(source, **settings)
    except Exception as error:  # missing, damaged or foreign files can raise anything
        raise ValueError(f"judge={name!r} cannot be loaded: {_root_cause(error)} {JUDGES}") from error
    settings |= {"config": config, "dtype": torch.float32}
    model = load_whole(
        AutoModelForCausalLM, source, f"judge={name!r}", others_may_be_there=True, advice=JUDGES, **settings
    )
    if not _is_causal(model.eval()):
        raise ValueError(f"judge={name!r} is not a causal language model: its predictions depend on later tokens.")
    return model, tokenizer


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ") + "."


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Tells whether predictions stay the same, up to rounding, when later tokens change."""
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
    """Computes the negative log-likelihood of `texts` under a judge model, as the head of this file explains.

    Every scored token counts once, whatever its text, and the result does not depend on the batch size. The first token
    of a text is scored after the tokenizer's BOS. Without a BOS it is only context. A special token of the judge model
    that a text spells is read as characters.

    The standard error is that of the ratio sum of nats / sum of tokens over independent texts, by the delta method.
    With r_i = nats_i - nats_per_token * tokens_i, it is the square root of S / (S - 1) * sum r_i^2, divided by the sum
    of tokens.

    Args:
        texts: S texts, decoded by the tokenizer of the model that generated them.
        model: the judge model, on any device. A forward pass makes (B, L, V) logits in its dtype, so `batch_size`
            bounds the memory. The log-softmax is taken in float32, for one text at a time.
        tokenizer: the judge model's tokenizer.
        batch_size: B, texts in a forward pass.
        max_length: the number of ids of a text to read, including BOS. Default and upper limit: the judge model's
            max_position_embeddings, if it has that limit.
        eos_token: the spelling in `texts` of the generating model's EOS. The judge model reads its own EOS there, or
            an empty line if it has none. None: texts are read unchanged.

    Returns:
        None if no text has a token to score. A text without one, such as an empty sample, is left out and counted.

    Raises:
        ValueError: if there are no texts, or `batch_size` or `max_length` is out of range.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts must be a list of at least one text; got {texts!r}.")
    check_count("batch_size", batch_size)
    limit = _limit(model, max_length)
    encoded = _encode(texts, tokenizer, eos_token)
    whole = [ids for ids in encoded if len(ids) > 1]  # without a BOS the first token is only context
    if not whole:
        return None
    rows = [torch.tensor(ids[:limit]) for ids in whole]
    n_tokens = torch.tensor([len(row) - 1 for row in rows])  # (S,) scored: all but the first id, BOS or context
    nats = torch.zeros(len(rows), dtype=torch.float64)  # (S,)
    by_length = n_tokens.argsort()  # similar lengths together, to pad little
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
    """Returns the number of ids of a text to read; None: all."""
    context = getattr(model.config, "max_position_embeddings", None)
    if max_length is None:
        return context
    if not is_integer(max_length) or max_length < 2 or (context is not None and max_length > context):
        at_most = "" if context is None else f" and at most {context}, the judge model's context"
        raise ValueError(f"max_length={max_length!r} must be at least 2{at_most}.")
    return max_length


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, eos_token: str | None = None) -> list[list[int]]:
    """Returns the judge model's ids of each text, after BOS if its tokenizer has one."""
    # Some tokenizers add their BOS by themselves. Others, such as GPT-2's, have one and do not add it.
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
    """Computes the negative log-likelihoods (B,) of rows of ids, each given its first id, in float64."""
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(rows, batch_first=True).to(model.device)  # (B, L), padded on the right with id 0
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(model.device)
    # No cache of keys and values: GPT-2 large's would be larger than the logits.
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits  # (B, L, V)
    nats = torch.zeros(len(rows), dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        nll = F.cross_entropy(logits[row, : length - 1].float(), input_ids[row, 1:length], reduction="none")
        nats[row] = nll.cpu().double().sum()
    return nats


def _ratio_error(nats: Tensor, n_tokens: Tensor, ratio: float) -> float:
    """Computes the standard error of ratio = sum of nats / sum of tokens, both (S,), over independent texts."""
    n_texts = len(nats)
    if n_texts == 1:
        return math.nan
    residuals = nats - ratio * n_tokens  # (S,) nats; they sum to 0
    return math.sqrt(n_texts / (n_texts - 1) * float(residuals.square().sum())) / int(n_tokens.sum())


# ---------------------------------------------------------------------------------------------------------
# Samples, their cost, and the figures of a text
# ---------------------------------------------------------------------------------------------------------


def expected_nfe(config: Any, method: str, steps: int | None, n_masked: int) -> float:
    """Computes the mean number of network evaluations of a row with `n_masked` masks, by any method of `generate`.

    For a method on a time grid, [`noise_radd.expected_evaluations`] computes it. The other methods have a fixed number:
    "first_hitting" takes one evaluation for each mask, "ordered" takes `steps` (None: one for each mask), but not more
    than there are masks.

    Args:
        config: the model's configuration, which names the noise.

    Raises:
        ValueError: for an unknown method, or a method on a grid without `steps`.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}.")
    check_count("n_masked", n_masked, least=0)
    if steps is not None:
        check_count("steps", steps)
    if method in GRID_METHODS:
        if steps is None:
            raise ValueError(f"steps=None: method={method!r} needs the number of steps of its time grid.")
        return expected_evaluations(get_noise(config), method, steps, n_masked)
    return float(n_masked if method == "first_hitting" or steps is None else min(steps, n_masked))


@dataclass(frozen=True)
class Samples:
    """Samples of a model, and their cost."""

    ids: Tensor  # (S, L)
    evaluations: Tensor  # (S,) network evaluations (NFE) of each sample
    seconds: float  # time of the slowest process for all its samples

    @property
    def nfe(self) -> float:
        return float(self.evaluations.double().mean())

    @property
    def nfe_error(self) -> float:
        """Returns the standard error of the mean NFE; nan for one sample."""
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
    """Generates S samples by `generate`, and returns them on the CPU.

    Sample i uses the random generator of `generate(seed=)`. So its text does not depend on the batch size and the
    number of processes, as long as the network's logits are the same. With one seed, methods and numbers of steps are
    compared on the same random numbers, and two that have the same distribution generate the same text.

    Args:
        n_samples: S.
        seed: the seed of all samples.
        batch_size: samples generated together in each process.
        accelerator: its processes share the samples, and each gets all of them. All processes must call this function.
        before_gathering: called in every process after its share. If it raises in all, the samples are not gathered.
        settings: for [`RaddGenerationMixin.generate`]: `length`, `method`, `steps`, ... The settings saved with the
            model are ignored.

    Raises:
        ValueError: if `n_samples` or `batch_size` is below 1, or `generate` refuses a setting.
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
            generation_config={"exact": True},  # ignores the settings saved with the model
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
    """Returns rows (count, L), spread evenly over a text, to compare samples with.

    Raises:
        ValueError: if the text has fewer rows.
    """
    if not (is_integer(count) and 1 <= count <= len(rows)):
        raise ValueError(f"count={count!r} must be at least 1 and at most {len(rows)}, the rows of the text.")
    return torch.stack([rows[index * len(rows) // count] for index in range(count)])


def text_figures(
    ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    judged_by: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    *,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Computes all figures of this file for texts of equal length, in a form for JSON.

    "token_entropy_error" is the standard error of the mean entropy over the texts. "judgement" is the result of
    [`Judgement.to_dict`]; it is None without a judge model, and if all texts are empty.

    Args:
        ids: (S, L), S >= 2, ids of `tokenizer`.
        tokenizer: decodes the ids for the judge model. Special tokens and spaces are kept.
        judged_by: the result of [`load_judge`], or None.
        batch_size: texts in a forward pass of the judge model.
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
