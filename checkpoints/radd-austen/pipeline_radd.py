# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills the blanks of texts: a pipeline of transformers around `generate`.

    "It was [MASK:4] of spring."  ->  ids, with four masks in the blank  ->  "It was a very cold day of spring."

A canvas is a row of token ids, some of them masks. An event is one evaluation of the network and the tokens that it
reveals.

Shapes: B texts, R samples for each, L length of the longest text, K the largest number of blanks in a text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline

from .canvas_radd import encode_request
from .generation_radd import RaddGenerationConfig, own_settings
from .randomness_radd import check_seed, sample_generators, text_seed
from .settings_radd import LENGTHS, SETTINGS, SYNONYMS, own_arguments
from .text_radd import BlankedText, check_tokenizer

# An entry of a saved model's config.json, by which `pipeline("radd-infilling", ...)` finds the class below.
CUSTOM_PIPELINES = {
    "radd-infilling": {"impl": "pipeline_radd.RaddInfillingPipeline", "pt": ["AutoModelForMaskedLM"]},
}


class RaddInfillingPipeline(Pipeline):
    """Fills the blanks of texts: `pipeline("radd-infilling", model=..., trust_remote_code=True)("It was [MASK:4].")`.

    A text has blanks as in [`encode_blanks`]. In place of a text there may be a dictionary with a `prefix`, a `suffix`,
    and `length` or `max_new_tokens` ([`encode_request`]). A dictionary may also have a `seed` of its own.

    A call takes one text, a list of texts, or a data set or generator of texts, which is streamed. For one text it
    returns a list of `num_return_sequences` dictionaries. For several texts it returns a list or an iterator of such
    lists. A dictionary has these entries:

        text: the text with its blanks filled.
        fills: the text in each blank, with the space before it if it begins with a word.
        fill_scores: for each blank, the sum of the log-probabilities of its tokens, in nats (the unit of natural
            logarithms). Each is that of the draw, before temperature, top-k and top-p. Tokens revealed together are
            scored as independent. With one token an event (method "ordered" without steps, or "first_hitting") the sum
            over all blanks is the log-probability of the filling in the order in which it was drawn.
        score: the sum of `fill_scores`.
        num_function_evaluations: the number of network evaluations for this text.

    `batch_size` texts are computed together, padded to one length. Every sample has a generator of its own. So the
    other texts of a batch do not change it, except by the rounding of the network's logits (see `generate`).

    Settings of `pipeline` and of a call:
        num_return_sequences, method, steps, order, entropy_bound, temperature, top_k, top_p, max_time,
        logits_processor, progress, generation_config, and every other setting of `generate` that says how to draw.
        batch_size, num_workers: as in every pipeline of transformers.

    Raises:
        ValueError: for a text without blanks or with malformed ones, for an unknown setting, and as `generate`.
    """

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False

    model: Any
    tokenizer: Any

    # Settings of `generate` that say what it returns. The pipeline needs these values.
    FIXED = {"stop_on_eos": False, "output_history": False, "return_dict_in_generate": True}
    SETTINGS = {*SETTINGS, "generation_config", "logits_processor", "progress"} - {*LENGTHS, *FIXED}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.tokenizer is None:
            raise ValueError("tokenizer=None: the pipeline reads and writes text. Pass the model's tokenizer.")
        check_tokenizer(self.tokenizer)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # any token will do: no token attends to padding

    def __call__(
        self,
        inputs: str | Mapping[str, Any] | Iterable[str | Mapping[str, Any]],
        *args,
        num_workers: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **settings,
    ) -> Any:
        """Fills the blanks of the inputs; the class describes the arguments.

        Args:
            inputs: one text with blanks, or several, or dictionaries, see the class.
            seed: the same seed and settings give the same samples of the n-th text, whatever `batch_size` is. For one
                text they are those of `generate(seed=)` and of the command line. A text with a seed of its own gets the
                same samples as alone.
            generator: instead of `seed`, a source of randomness, which the call advances. Default: torch's own.
        """
        if seed is not None:
            if generator is not None:
                raise ValueError(f"seed={seed} and generator both say where randomness comes from; pass one of them.")
            seed = check_seed(seed)
        if not isinstance(generator, (torch.Generator, type(None))):
            raise ValueError(f"generator={generator!r} must be one torch.Generator; it seeds one for every sample.")
        if isinstance(inputs, bytes) or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")):
            raise ValueError(f"inputs={inputs!r} must be a text with blanks, or a list, data set or stream of texts.")
        device = None if generator is None else generator.device

        def item(number: int, request: Any) -> dict[str, Any]:
            if seed is not None or _has_seed(request):
                return {"request": request, "seed": None if seed is None else text_seed(seed, number)}
            drawn = torch.randint(2**63 - 1, (1,), generator=generator, device=device)
            return {"request": request, "seed": int(drawn)}

        items: Any = (item(number, request) for number, request in enumerate(inputs))
        if isinstance(inputs, (str, Mapping)):
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
        if "generation_config" in settings:  # its lengths are for texts without blanks
            chosen = own_settings(settings["generation_config"])
            settings["generation_config"] = {name: chosen[name] for name in chosen if name not in LENGTHS}
        return {}, settings, {}

    def preprocess(self, input_: dict[str, Any], **preprocess_parameters) -> dict[str, Any]:
        return self.encode(input_["request"], input_["seed"])

    def encode(self, request: str | Mapping[str, Any], seed_of_text: int | None = None) -> dict[str, Any]:
        """Encodes a request: ids and attention mask (1, L), spans (1, K, 2), seed (1,), text around the blanks.

        Args:
            request: a text with blanks or a dictionary, see the class.
            seed_of_text: what `randomness_radd.text_seed` returned. A seed of the request takes its place.

        Raises:
            ValueError: for a request that [`encode_request`] refuses, and for one without any seed.
        """
        if isinstance(request, Mapping):
            request = dict(request)
            own = request.pop("seed", None)
            seed_of_text = seed_of_text if own is None else text_seed(check_seed(own))
        if seed_of_text is None:
            raise ValueError("seed_of_text=None: pass a seed, or a request with a seed.")
        ids, spans, pieces = encode_request(request, self.model.config, self.tokenizer)
        input_ids = torch.tensor([ids])
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "spans": torch.tensor([spans]),
            "pieces": pieces,
            "seed": torch.tensor([seed_of_text]),
        }

    def fill(
        self, rows: Sequence[dict[str, Any]], *, streamer: Any = None, **settings: Any
    ) -> list[list[dict[str, Any]]]:
        """Fills several rows of one length together; returns the samples of each row, see the class.

        Args:
            rows: what `encode` returned.
            streamer: as in `generate`; it gets canvases (rows x num_return_sequences, L).
            settings: as in a call of the pipeline.
        """
        lengths = sorted({row["input_ids"].shape[1] for row in rows})
        if len(lengths) != 1:
            raise ValueError(f"rows have lengths {lengths}; rows that are filled together must have one length.")
        settings = self._sanitize_parameters(**settings)[1]
        together = {
            "input_ids": torch.cat([row["input_ids"] for row in rows]),  # (B, L)
            "seed": torch.cat([row["seed"] for row in rows]),  # (B,)
        }
        with self.device_placement(), torch.inference_mode():
            output = self._generate(together, streamer=streamer, **settings)
        return [
            self._samples(sequences, logprobs, evaluations, row["spans"][0].tolist(), row["pieces"])
            for row, sequences, logprobs, evaluations in zip(
                rows,
                output["sequences"].cpu(),
                output["token_logprobs"].cpu(),
                output["num_function_evaluations"].tolist(),
                strict=True,
            )
        ]

    def _forward(self, input_tensors: dict[str, Any], **settings) -> Any:
        return self._generate(input_tensors, **settings) | {
            "attention_mask": input_tensors["attention_mask"],
            "spans": input_tensors["spans"],  # (B, K, 2), empty spans as padding
            "pieces": input_tensors["pieces"],
        }

    def _generate(self, inputs: Mapping[str, Any], streamer: Any = None, **settings) -> dict[str, Any]:
        given = {name: value for name, value in settings.items() if name in SETTINGS}
        sources = given, settings.get("generation_config"), self.model.generation_config
        copies = RaddGenerationConfig.resolve(*sources).num_return_sequences
        output = self.model.generate(
            inputs["input_ids"],  # (B, L)
            attention_mask=inputs.get("attention_mask"),
            generator=[own for seed in inputs["seed"].tolist() for own in sample_generators(seed, range(copies))],
            streamer=streamer,
            **settings,
            **self.FIXED,
        )
        return {
            "sequences": output.sequences.unflatten(0, (-1, copies)),  # (B, R, L)
            "token_logprobs": output.token_logprobs.unflatten(0, (-1, copies)),  # (B, R, L)
            "num_function_evaluations": output.num_function_evaluations.unflatten(0, (-1, copies)),  # (B, R)
        }

    def postprocess(self, model_outputs: Any, **postprocess_parameters) -> list[dict[str, Any]]:
        """Returns one text's samples, without the batch's padding."""
        text = model_outputs["attention_mask"][0].bool()  # (L,)
        spans = [(begin, end) for begin, end in model_outputs["spans"][0].tolist() if begin < end]
        return self._samples(
            model_outputs["sequences"][0][:, text],
            model_outputs["token_logprobs"][0][:, text],
            model_outputs["num_function_evaluations"][0].tolist(),
            spans,
            model_outputs["pieces"],
        )

    def _samples(
        self, sequences: Any, logprobs: Any, evaluations: list[int], spans: Sequence, pieces: list[str]
    ) -> list[dict[str, Any]]:
        """Returns the samples of one text. sequences and logprobs: (R, L), without padding."""
        given, samples = BlankedText([], [(begin, end) for begin, end in spans], pieces), []
        for ids, nats, count in zip(sequences, logprobs.double(), evaluations, strict=True):
            fills = given.fills(ids.tolist(), self.tokenizer)
            scores = [nats[begin:end].sum().item() for begin, end in given.spans]
            samples.append(
                {
                    "text": given.filled(fills),
                    "fills": fills,
                    "fill_scores": scores,
                    "score": sum(scores),
                    "num_function_evaluations": count,
                }
            )
        return samples


def _has_seed(request: Any) -> bool:
    return isinstance(request, Mapping) and request.get("seed") is not None


__all__ = ["RaddInfillingPipeline"]
