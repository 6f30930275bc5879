# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Text with blanks to filled text: the blank syntax, and a pipeline of transformers around `generate`.

    "It was [MASK:4] of spring."  ->  a canvas of ids, masks in the blank  ->  "It was a very cold day of spring."

Shapes: B texts, R samples for each, L length of the longest text, K blanks of the text that has most.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline

from .generation_radd import GRID_METHODS, RaddGenerationConfig

# What a saved model's config.json says, so that `pipeline("radd-infilling", ...)` finds the class below.
CUSTOM_PIPELINES = {
    "radd-infilling": {"impl": "pipeline_radd.RaddInfillingPipeline", "pt": ["AutoModelForMaskedLM"]},
}

# What opens a blank in any spelling, so that a slip is an error and not text.
BLANK_BEGINS = re.compile(r"\[MASK", re.IGNORECASE)
BLANK = re.compile(r"\[MASK(?::([0-9]{1,9}))?\]")
# Longer than any text of any model; a slip of the keyboard must not fill the memory.
MAX_BLANK = 2**16


def encode_blanks(text: str, tokenizer: Any, mask_token_id: int) -> list[int]:
    """The canvas of a text with blanks: its token ids, with `mask_token_id` where text is wanted.

    `[MASK]`, or the tokenizer's own mask token, is a blank of one token, `[MASK:n]` one of n tokens. The text between
    is tokenised without special tokens.

    One space before a blank belongs to the blank: in a byte-level BPE a word brings the space before it, so that
    "It was [MASK] of" is the canvas of "It was cold of" with " cold" masked. Any other white space is the text's.

    Args:
        text: with any number of blanks, none included.
        tokenizer: of transformers, a byte-level BPE such as GPT-2's.
        mask_token_id: the model's `config.mask_token_id`.

    Returns:
        L ids.

    Raises:
        ValueError: for a blank that is malformed, empty or of more than `MAX_BLANK` tokens.
    """
    return encode_with_spans(text, tokenizer, mask_token_id)[0]


def encode_with_spans(text: str, tokenizer: Any, mask_token_id: int) -> tuple[list[int], list[tuple[int, int]]]:
    """As [`encode_blanks`], and where in the canvas each blank begins and ends (the end excluded)."""
    if not isinstance(text, str):
        raise ValueError(f"text={text!r} must be a string, with blanks such as [MASK] or [MASK:12].")
    if tokenizer.mask_token is not None:
        text = text.replace(tokenizer.mask_token, "[MASK]")
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    end = 0  # of what has been read of the text
    for beginning in BLANK_BEGINS.finditer(text):
        blank = BLANK.match(text, beginning.start())
        size = int(blank[1] or 1) if blank else 0
        if blank is None or not 1 <= size <= MAX_BLANK:
            raise ValueError(
                f"text has {text[beginning.start() : beginning.start() + 16]!r} at character {beginning.start()}; a "
                f"blank is written [MASK] for one token or [MASK:n] for n tokens, n from 1 to {MAX_BLANK}."
            )
        piece = text[end : blank.start()].removesuffix(" ")
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        spans.append((len(ids), len(ids) + size))
        ids += [mask_token_id] * size
        end = blank.end()
    ids += tokenizer(text[end:], add_special_tokens=False)["input_ids"]
    return ids, spans


class RaddInfillingPipeline(Pipeline):
    """Fills the blanks of texts: `pipeline("radd-infilling", model=..., trust_remote_code=True)("It was [MASK:4].")`.

    The blanks are those of [`encode_blanks`]. A call takes one text, a list of texts, or a data set or generator of
    texts, which is streamed. It returns for one text a list of `num_return_sequences` dictionaries, for several a list
    or an iterator of such lists:

        text: the text with its blanks filled.
        fills: the text in each blank, with the space before it if it begins with a word.
        fill_scores: for each blank, the sum of the log-probabilities of its tokens, in nats, each when it was drawn
            and before temperature, top-k and top-p. Tokens revealed together are scored as independent; with one token
            an event (method "ordered" without steps, or "first_hitting") the sum over all blanks is the
            log-probability of the filling in the order in which it was written.
        score: the sum of `fill_scores`.
        num_function_evaluations: how often the network was evaluated for this text.

    `batch_size` texts are computed together, padded to one length. Every sample has a generator of its own, so that the
    texts beside it do not matter, but for the rounding of the network's logits (see `generate`).

    With `pipeline`, or with the call:
        num_return_sequences, method, steps, order, temperature, top_k, top_p, max_time, logits_processor,
        generation_config and every other setting of `generate` that says how to draw, see there. `steps` of a grid is
        by default the model's `max_position_embeddings`, since the length depends on the padding; n masked tokens take
        at most n evaluations all the same.
        batch_size, num_workers: as in every pipeline of transformers.

    Raises:
        ValueError: for a text without blanks or with malformed ones, an unknown setting, and as `generate`.
    """

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False

    model: Any
    tokenizer: Any

    # Those of `generate` that would change what comes back, not how it is drawn.
    FIXED = {"stop_on_eos": False, "output_history": False, "return_dict_in_generate": True}
    SETTINGS = {*RaddGenerationConfig.DEFAULTS, "generation_config", "logits_processor"} - {"length", *FIXED}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.tokenizer is None:
            raise ValueError("tokenizer=None: the pipeline reads and writes text, pass the model's tokenizer.")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # any token will do: padding is not attended to

    def __call__(
        self,
        inputs: str | Iterable[str],
        *args,
        num_workers: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **settings,
    ) -> Any:
        """See the class.

        Args:
            inputs: one text with blanks, or several.
            seed: the same seed, text and settings give the same samples, whatever `batch_size` is.
            generator: instead of `seed`, a source that is advanced by the call. Default: torch's own.
        """
        if seed is not None:
            if generator is not None:
                raise ValueError(f"seed={seed} and generator both say where randomness comes from; pass one of them.")
            if not isinstance(seed, int):
                raise ValueError(f"seed={seed!r} must be an integer.")
            generator = torch.Generator().manual_seed(seed)
        if not isinstance(generator, (torch.Generator, type(None))):
            raise ValueError(f"generator={generator!r} must be one torch.Generator; every sample gets its own from it.")
        device = None if generator is None else generator.device

        def item(text: str) -> dict[str, Any]:
            return {"text": text, "seed": torch.randint(2**63 - 1, (1,), generator=generator, device=device).cpu()}

        items: Any = (item(text) for text in inputs)
        if isinstance(inputs, str):
            items = item(inputs)
        elif isinstance(inputs, (list, tuple)):
            items = list(items)
            if not items:
                return []
        return super().__call__(items, *args, num_workers=num_workers, batch_size=batch_size, **settings)

    def _sanitize_parameters(self, **settings) -> tuple[dict, dict, dict]:
        for name, value in settings.items():
            if name not in self.SETTINGS:
                raise ValueError(
                    f"{name}={value!r} is not a setting of this pipeline; they are {sorted(self.SETTINGS)}, "
                    "batch_size, num_workers, and, of a call, seed or generator."
                )
        return {}, settings, {}

    def preprocess(self, input_: dict[str, Any], **preprocess_parameters) -> dict[str, Any]:
        """Rows of one text, which transformers pads with others: ids and mask (1, L), spans (1, K, 2), seed (1,)."""
        ids, spans = encode_with_spans(input_["text"], self.tokenizer, self.model.config.mask_token_id)
        if not spans:
            raise ValueError(f"text={input_['text']!r} has no blank; write [MASK] or [MASK:n] where text is wanted.")
        input_ids = torch.tensor([ids])
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "spans": torch.tensor([spans]),
            "seed": input_["seed"],
        }

    def _forward(self, input_tensors: dict[str, Any], **settings) -> Any:
        canvas, attention_mask = input_tensors["input_ids"], input_tensors["attention_mask"]  # (B, L) each
        given = {name: value for name, value in settings.items() if name in RaddGenerationConfig.DEFAULTS}
        resolved = RaddGenerationConfig.resolve(given, settings.get("generation_config"), self.model.generation_config)
        if resolved.method in GRID_METHODS and resolved.steps is None:
            settings["steps"] = self.model.config.max_position_embeddings
        copies = resolved.num_return_sequences
        output = self.model.generate(
            canvas,
            attention_mask=attention_mask,
            generator=[own for seed in input_tensors["seed"].tolist() for own in generators(seed, copies)],
            **settings,
            **self.FIXED,
        )
        return {
            "sequences": output.sequences.unflatten(0, (-1, copies)),  # (B, R, L)
            "token_logprobs": output.token_logprobs.unflatten(0, (-1, copies)),  # (B, R, L)
            "num_function_evaluations": output.num_function_evaluations.unflatten(0, (-1, copies)),  # (B, R)
            "attention_mask": attention_mask,
            "spans": input_tensors["spans"],  # (B, K, 2), empty spans as padding
        }

    def postprocess(self, model_outputs: Any, **postprocess_parameters) -> list[dict[str, Any]]:
        """Of one text: its samples, without the padding of its batch."""
        text = model_outputs["attention_mask"][0].bool()  # (L,)
        spans = [(begin, end) for begin, end in model_outputs["spans"][0].tolist() if begin < end]
        samples = []
        for ids, logprobs, evaluations in zip(
            model_outputs["sequences"][0][:, text],
            model_outputs["token_logprobs"][0][:, text].double(),
            model_outputs["num_function_evaluations"][0],
            strict=True,
        ):
            scores = [logprobs[begin:end].sum().item() for begin, end in spans]
            samples.append(
                {
                    "text": self._decode(ids),
                    "fills": [self._decode(ids[begin:end]) for begin, end in spans],
                    "fill_scores": scores,
                    "score": sum(scores),
                    "num_function_evaluations": int(evaluations),
                }
            )
        return samples

    def _decode(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def generators(seed: int, count: int) -> list[torch.Generator]:
    """Independent generators from one seed, the first ones the same for any `count`."""
    seeds = torch.randint(2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))
    return [torch.Generator().manual_seed(own) for own in seeds.tolist()]


__all__ = ["RaddInfillingPipeline", "encode_blanks", "encode_with_spans"]
