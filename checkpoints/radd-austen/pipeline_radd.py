# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills the blanks of texts: a pipeline of transformers around `generate`.

    "It was [MASK:4] of spring."  ->  a canvas of ids, masks in the blank  ->  "It was a very cold day of spring."

Shapes: B texts, R samples for each, L length of the longest text, K blanks of the text that has most.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import Pipeline

from .generation_radd import LENGTHS, RaddGenerationConfig, own_settings
from .randomness_radd import check_seed, sample_generators, text_seed
from .settings_radd import SETTINGS, SYNONYMS, own_arguments
from .text_radd import BlankedText, check_tokenizer, encode_with_blanks

# What a saved model's config.json says, so that `pipeline("radd-infilling", ...)` finds the class below.
CUSTOM_PIPELINES = {
    "radd-infilling": {"impl": "pipeline_radd.RaddInfillingPipeline", "pt": ["AutoModelForMaskedLM"]},
}


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
        num_return_sequences, method, steps, order, entropy_bound, temperature, top_k, top_p, max_time,
        logits_processor, progress, generation_config and every other setting of `generate` that says how to draw, see
        there.
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
    SETTINGS = {*SETTINGS, "generation_config", "logits_processor", "progress"} - {*LENGTHS, *FIXED}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.tokenizer is None:
            raise ValueError("tokenizer=None: the pipeline reads and writes text, pass the model's tokenizer.")
        check_tokenizer(self.tokenizer)
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
            seed: the same seed and settings give the same samples of the n-th text, whatever `batch_size` is; for
                one text those that `generate(seed=)` and the command line write.
            generator: instead of `seed`, a source that is advanced by the call. Default: torch's own.
        """
        if seed is not None:
            if generator is not None:
                raise ValueError(f"seed={seed} and generator both say where randomness comes from; pass one of them.")
            seed = check_seed(seed)
        if not isinstance(generator, (torch.Generator, type(None))):
            raise ValueError(f"generator={generator!r} must be one torch.Generator; every sample gets its own from it.")
        if isinstance(inputs, (bytes, Mapping)) or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")):
            raise ValueError(f"inputs={inputs!r} must be a text with blanks, or a list, data set or stream of texts.")
        device = None if generator is None else generator.device

        def item(number: int, text: str) -> dict[str, Any]:
            if seed is not None:
                return {"text": text, "seed": torch.tensor([text_seed(seed, number)])}
            return {"text": text, "seed": torch.randint(2**63 - 1, (1,), generator=generator, device=device).cpu()}

        items: Any = (item(number, text) for number, text in enumerate(inputs))
        if isinstance(inputs, str):
            items = item(0, inputs)
        elif isinstance(inputs, (list, tuple)):
            items = list(items)
            if not items:
                return []
        return super().__call__(items, *args, num_workers=num_workers, batch_size=batch_size, **settings)

    def _sanitize_parameters(self, **settings) -> tuple[dict, dict, dict]:
        for name, value in settings.items():
            if SYNONYMS.get(name, name) in LENGTHS and value is not None:
                raise ValueError(
                    f"{name}={value!r} is not a setting of this pipeline: each blank says how many tokens it has, "
                    "[MASK:12]."
                )
        settings = own_arguments(settings, self.SETTINGS, "a setting of this pipeline")
        if "generation_config" in settings:  # whose lengths are for other texts than those with blanks
            chosen = own_settings(settings["generation_config"])
            settings["generation_config"] = {name: chosen[name] for name in chosen if name not in LENGTHS}
        return {}, settings, {}

    def preprocess(self, input_: dict[str, Any], **preprocess_parameters) -> dict[str, Any]:
        """Rows of one text, which transformers pads with others: ids and mask (1, L), spans (1, K, 2), seed (1,)."""
        ids, spans, pieces = encode_with_blanks(input_["text"], self.tokenizer, self.model.config.mask_token_id)
        if not spans:
            raise ValueError(f"text={input_['text']!r} has no blank; write [MASK] or [MASK:n] where text is wanted.")
        input_ids = torch.tensor([ids])
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "spans": torch.tensor([spans]),
            "pieces": pieces,
            "seed": input_["seed"],
        }

    def _forward(self, input_tensors: dict[str, Any], **settings) -> Any:
        canvas, attention_mask = input_tensors["input_ids"], input_tensors["attention_mask"]  # (B, L) each
        given = {name: value for name, value in settings.items() if name in SETTINGS}
        sources = given, settings.get("generation_config"), self.model.generation_config
        copies = RaddGenerationConfig.resolve(*sources).num_return_sequences
        output = self.model.generate(
            canvas,
            attention_mask=attention_mask,
            generator=[
                own for seed in input_tensors["seed"].tolist() for own in sample_generators(seed, range(copies))
            ],
            **settings,
            **self.FIXED,
        )
        return {
            "sequences": output.sequences.unflatten(0, (-1, copies)),  # (B, R, L)
            "token_logprobs": output.token_logprobs.unflatten(0, (-1, copies)),  # (B, R, L)
            "num_function_evaluations": output.num_function_evaluations.unflatten(0, (-1, copies)),  # (B, R)
            "attention_mask": attention_mask,
            "spans": input_tensors["spans"],  # (B, K, 2), empty spans as padding
            "pieces": input_tensors["pieces"],
        }

    def postprocess(self, model_outputs: Any, **postprocess_parameters) -> list[dict[str, Any]]:
        """Of one text: its samples, without the padding of its batch."""
        text = model_outputs["attention_mask"][0].bool()  # (L,)
        spans = [(begin, end) for begin, end in model_outputs["spans"][0].tolist() if begin < end]
        given, samples = BlankedText([], spans, model_outputs["pieces"]), []
        for ids, logprobs, evaluations in zip(
            model_outputs["sequences"][0][:, text],
            model_outputs["token_logprobs"][0][:, text].double(),
            model_outputs["num_function_evaluations"][0],
            strict=True,
        ):
            fills = given.fills(ids.tolist(), self.tokenizer)
            scores = [logprobs[begin:end].sum().item() for begin, end in spans]
            samples.append(
                {
                    "text": given.filled(fills),
                    "fills": fills,
                    "fill_scores": scores,
                    "score": sum(scores),
                    "num_function_evaluations": int(evaluations),
                }
            )
        return samples


__all__ = ["RaddInfillingPipeline"]
