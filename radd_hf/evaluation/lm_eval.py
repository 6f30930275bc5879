# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""RADD as the model "radd" of the lm-evaluation-harness.

    python -m radd_hf.evaluation.lm_eval --model radd --batch_size 32 --tasks lambada_openai \\
        --model_args pretrained=checkpoints/radd-austen

The harness asks for log p(continuation | context), log p(text), and for a continuation. All flags of the harness work.
`accelerate launch -m radd_hf.evaluation.lm_eval ...` shares the requests among processes. Random draws are a function
of the request and `seed`. So batches, processes and `--limit` do not change an answer, up to the rounding of a matrix
product in a batch of another shape.

A text begins as a document in training, after the EOS of the document before. So an empty context means EOS.

A canvas is a sequence in which some tokens are masks.

Shapes: L length, V vocabulary, C canvases of a forward pass, P places of a forward pass at which a token is scored.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .. import RaddForMaskedLM, RaddGenerationConfig, __version__
from ..hub.loading import check_tokenizer, find_device, load, load_model, load_tokenizer
from ..likelihood import ESTIMATORS, check_passes, estimate_likelihood
from ..processes import make_accelerator, run_script
from ..randomness_radd import stream_seed
from ..settings_radd import TEXT_SETTINGS
from ..text_radd import decode_after_text, encode_text

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    needs = f"radd_hf.evaluation.lm_eval needs the lm-evaluation-harness: pip install 'radd_hf[lm-eval]'. ({error})"
    if __name__ == "__main__":
        raise SystemExit(f"lm_eval.py: error: {needs}") from error
    raise ImportError(needs) from error

DTYPES = ("float32", "bfloat16", "float16")
# The harness's default, if the model's length leaves room for it.
MAX_GEN_TOKS = 256
# The generation_kwargs of a task, or --gen_kwargs, that go to `generate` unchanged: all that the harness does not set.
DECIDED = "length", "temperature", "exact", "stop_on_eos"
GENERATION_KWARGS = tuple(name for name in TEXT_SETTINGS if name not in DECIDED)


class Canvas(NamedTuple):
    """The ids of context and continuation. The tokens from `first` on are scored given those before."""

    ids: list[int]
    first: int


class Prompt(NamedTuple):
    """A request for text: its number, the ids of its context, keywords of `generate`, where to stop, its seed."""

    request: int
    ids: list[int]
    settings: dict[str, Any]
    until: list[str]
    seed: int


@register_model("radd")
class RaddLM(TemplateLM):
    """A RADD model and its tokenizer behind the interface of the harness. Likelihoods are in nats.

    Args (the `--model_args`):
        pretrained: folder or Hub repository of a RADD model, ours or the authors'; in Python also a model.
        tokenizer: name or folder, or a tokenizer. Default: that of `pretrained`. The authors' repositories have no
            tokenizer; theirs is "gpt2".
        revision: revision of `pretrained` on the Hub, and of its tokenizer.
        batch_size: rows of a forward pass. This and `device` override the harness's flags of the same name.
        device: default: a GPU or other accelerator if there is one. With several processes Accelerate chooses it.
        dtype: precision of weights and arithmetic, one of DTYPES. Logits are converted to float32 at the end.
        max_length: tokens of context and continuation together. Default: the length of training.
        likelihood: how to compute log p(continuation | context), one of `likelihood.ESTIMATORS`. The default,
            "ar_forward", is the chain rule from left to right. It is exact, and the quantity of an autoregressive
            model. It takes one row for each token of the continuation, so for short continuations it is cheaper than a
            good estimate of the mean over all orders. "ar_backward" is exact, too. So are "ar_confidence", "ar_margin"
            and "ar_entropy", in the order that the model chooses. The others, such as "k_stratified", estimate other
            quantities, mostly that mean, with an error that falls with `passes`.
        rolling: how to compute log p(text), one of the same. The default, "k_stratified", takes `passes` rows for each
            block; "ar_forward" takes one for each token.
        passes: number of masks drawn for each estimated text; an even number.
        seed: seed of masks and of generated text. The harness's own seeds change nothing here.
        max_gen_toks: number of tokens to generate, unless the task sets it. Default: 256, or half of max_length if
            that is less.
        method, steps: settings of `generate`, unless the task sets them.
        special_tokens_in_text: whether a special token spelled in a request becomes that token, as in the text of a
            chat template. Default: its characters are encoded.
        trust_remote_code: ignored, since this package has the code. The harness passes it on.

    Raises:
        ValueError: for settings that do not fit; for a tokenizer that cannot be loaded, has no EOS or belongs to
            another model.
    """

    def __init__(
        self,
        pretrained: str | RaddForMaskedLM,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        revision: str = "main",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "float32",
        max_length: int | None = None,
        likelihood: str = "ar_forward",
        rolling: str = "k_stratified",
        passes: int = 16,
        seed: int = 0,
        max_gen_toks: int | None = None,
        method: str | None = None,
        steps: int | None = None,
        special_tokens_in_text: bool = False,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        for name, estimator in (("likelihood", likelihood), ("rolling", rolling)):
            if estimator not in ESTIMATORS:
                raise ValueError(f"{name}={estimator!r} must be one of {ESTIMATORS}.")
        check_passes(passes)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a number of rows, at least 1.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {DTYPES}.")
        self.likelihood, self.rolling, self.passes, self.seed = likelihood, rolling, passes, seed
        self.batch_size = int(batch_size)
        self.settings = {"method": method, "steps": steps}
        self.special_tokens_in_text = special_tokens_in_text

        self.accelerator = make_accelerator() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        if self.accelerator is not None:
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device is None and not isinstance(pretrained, str):
            device = str(pretrained.device)
        self._device = _device_of(device) if self.accelerator is None else self.accelerator.device
        self.model: Any = pretrained
        self.tokenizer: Any = tokenizer
        if isinstance(pretrained, str) and not isinstance(tokenizer, PreTrainedTokenizerBase):
            # The harness turns a revision of digits into a number.
            settings = {"device": self._device, "dtype": getattr(torch, dtype), "revision": str(revision)}
            self.model, self.tokenizer = load(pretrained, tokenizer, flag="tokenizer=", **settings)
        else:
            if isinstance(pretrained, str):
                self.model = load_model(pretrained, dtype=getattr(torch, dtype), revision=str(revision))
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                self.tokenizer = load_tokenizer(tokenizer or str(self.model.name_or_path), "tokenizer=")
            self.model.to(self._device).eval()
        _check_tokenizer(self.tokenizer, self.model)

        self.max_length = self.model.config.max_position_embeddings if max_length is None else max_length
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2: a token to score, and one before it.")
        self.max_gen_toks = min(MAX_GEN_TOKS, self.max_length // 2) if max_gen_toks is None else max_gen_toks

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "RaddLM":
        """Makes the model from the harness's arguments. A model argument overrides the flag of the same name."""
        flags = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return super().create_from_arg_obj(flags | arg_dict)

    # -----------------------------------------------------------------------------------------------------
    # Tokens
    # -----------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Encodes a text as training does, by [`encode_text`], without added tokens.

        Raises:
            ValueError: if `encode_text` refuses the text.
        """
        return encode_text([string], self.tokenizer, "request", special_tokens_in_text=self.special_tokens_in_text)[0]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not self.tokenizer.chat_template:
            raise ValueError(f"tokenizer={self.tokenizer.name_or_path!r} has no chat template to apply.")
        self.special_tokens_in_text = True  # the template spells special tokens
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # -----------------------------------------------------------------------------------------------------
    # Likelihood
    # -----------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """Returns log p(continuation | context) of each request, and whether greedy decoding gives the continuation.

        Greedy decoding goes from left to right. `loglikelihood` of the harness calls this with ids. A context that is
        too long loses its beginning.

        Args:
            requests: ((context, continuation) as text, ids of the context, ids of the continuation).

        Raises:
            ValueError: for a continuation without tokens, or with more than `max_length`.
        """
        canvases = [self._fit(*request) for request in requests]
        # The longest comes first. So if one does not fit in memory, it fails at once.
        order = sorted(range(len(requests)), key=lambda index: (len(canvases[index].ids), canvases[index].ids))[::-1]
        answers: dict[int, tuple[float, bool]] = {}
        with self._bar(len(requests), "loglikelihood", disable_tqdm) as bar:
            if self.likelihood == "ar_forward":
                answered = self._by_the_chain_rule(canvases, order)
            else:
                answered = self._by_estimates([text for text, _, _ in requests], canvases, order)
            for index, answer in answered:
                answers[index] = answer
                self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                bar.update()
        return [answers[index] for index in range(len(requests))]

    def _fit(self, text: tuple[str, str], context: list[int], continuation: list[int]) -> Canvas:
        if not continuation:
            raise ValueError(
                f"continuation={text[1]!r} adds no token to its context, which ends with {text[0][-40:]!r}."
            )
        if len(continuation) > self.max_length:
            raise ValueError(
                f"continuation={text[1][:40]!r}... has {len(continuation)} tokens, more than max_length="
                f"{self.max_length}."
            )
        context = context[max(len(context) + len(continuation) - self.max_length, 0) :]
        return Canvas(context + continuation, len(context))

    def _by_the_chain_rule(
        self, canvases: Sequence[Canvas], order: list[int]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        nats, greedy = [0.0] * len(canvases), [True] * len(canvases)
        places = ((index, place) for index in order for place in range(canvases[index].first, len(canvases[index].ids)))
        for index, place, nll, likeliest in score_places(self.model, canvases, places, self.batch_size):
            nats[index] += nll
            greedy[index] &= likeliest
            if place == len(canvases[index].ids) - 1:
                yield index, (-nats[index], greedy[index])

    def _by_estimates(
        self, texts: Sequence[tuple[str, str]], canvases: Sequence[Canvas], order: list[int]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Scores by an estimator. Decodes greedily from left to right as long as the tokens match the continuation."""
        greedy, turn, right = set[int](), 0, order
        while right:
            places = [(index, canvases[index].first + turn) for index in right]
            scored = score_places(self.model, canvases, places, self.batch_size)
            right = [index for index, _, _, likeliest in scored if likeliest]
            turn += 1
            greedy |= {index for index in right if canvases[index].first + turn == len(canvases[index].ids)}
            right = [index for index in right if index not in greedy]
        for index in order:
            nats = self._estimate(self.likelihood, [canvases[index]], "loglikelihood", *texts[index])
            yield index, (-nats, index in greedy)

    def _estimate(self, estimator: str, canvases: Sequence[Canvas], *request: str) -> float:
        """Estimates the nats of the scored tokens of all canvases. The masks are a function of the request."""
        found = estimate_likelihood(
            self.model,
            [torch.tensor(canvas.ids) for canvas in canvases],
            scored=[torch.arange(len(canvas.ids)) >= canvas.first for canvas in canvases],
            estimator=estimator,
            passes=self.passes,
            batch_size=self.batch_size,
            seed=stream_seed(self.seed, *request),
        )
        return found.nats_per_token * found.n_tokens

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns log p(text) of each request; 0 for an empty text. Every token is scored once.

        The text is cut into the harness's windows of `max_length` tokens. The first begins with EOS, every other with
        the last token of the window before. The last window is filled up with the tokens before it, as context.
        """
        answers = []
        for (text,) in self._bar([request.args for request in requests], "loglikelihood_rolling", disable_tqdm):
            windows = get_rolling_token_windows(
                self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length - 1, context_len=1
            )
            parts = map(make_disjoint_window, windows)
            canvases = [Canvas(context + scored, len(context)) for context, scored in parts]
            answers.append(-self._estimate(self.rolling, canvases, "loglikelihood_rolling", text) if canvases else 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    # -----------------------------------------------------------------------------------------------------
    # Generation
    # -----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generates text after each context, up to EOS or the first of the strings in `until`.

        The canvas is the context and `max_gen_toks` masks. A context that is too long loses its beginning. Contexts of
        one length share a batch. If a request comes several times, for a task's `repeats`, each time gets new draws.

        The harness defines the settings `until`, `max_gen_toks`, `do_sample` and `temperature` of a request. Without
        do_sample, or without a temperature, the temperature is 0: the likeliest token is taken. The text may still be
        random, and differ from the greedy continuation of `loglikelihood`, since the default method draws the order of
        the places. With `method=ordered` it fills from left to right, so it is deterministic and the greedy one.
        GENERATION_KWARGS go to `generate`.

        Raises:
            ValueError: for other settings (`num_beams` may be 1), and for `max_gen_toks` that leaves no room for a
                context.
        """
        # No padding, since a row's random numbers depend on the length of its canvas.
        groups: dict[tuple[int, str], list[Prompt]] = {}
        times = Counter[tuple[str, str]]()
        for index, (context, gen_kwargs) in enumerate(request.args for request in requests):
            until, new_tokens, settings = self._generation_settings(gen_kwargs)
            ids = (self.tok_encode(context) or [self.prefix_token_id])[-(self.max_length - new_tokens) :]
            settings["length"] = len(ids) + new_tokens
            seed = stream_seed(self.seed, "generate_until", context, times[context, repr(gen_kwargs)])
            times[context, repr(gen_kwargs)] += 1
            groups.setdefault((len(ids), repr(settings)), []).append(Prompt(index, ids, settings, until, seed))

        answers: dict[int, str] = {}
        with self._bar(len(requests), "generate_until", disable_tqdm) as bar:
            for group in sorted(groups.values(), key=lambda group: -group[0].settings["length"]):
                for start in range(0, len(group), self.batch_size):
                    batch = group[start : start + self.batch_size]
                    sequences = self.model.generate(
                        prefix=[prompt.ids for prompt in batch],
                        generator=[torch.Generator().manual_seed(prompt.seed) for prompt in batch],
                        stop_on_eos=True,
                        generation_config=RaddGenerationConfig(exact=True, eos_token_id=self.eot_token_id),
                        **batch[0].settings,
                    )
                    for prompt, ids in zip(batch, sequences.tolist(), strict=True):
                        answer = answers[prompt.request] = self._text_until(ids[len(prompt.ids) :], prompt.until)
                        self.cache_hook.add_partial("generate_until", requests[prompt.request].args, answer)
                        bar.update()
        return [answers[index] for index in range(len(requests))]

    def _generation_settings(self, gen_kwargs: dict) -> tuple[list[str], int, dict]:
        """Returns the strings to stop at, how many tokens to generate, and the keywords of `generate`."""
        given: dict = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until, new_tokens, sampled = given.pop("until"), given.pop("max_gen_toks"), given.pop("do_sample")
        temperature = float(given.pop("temperature", 1.0))
        if given.pop("num_beams", 1) != 1:
            raise ValueError(f"num_beams={gen_kwargs['num_beams']}: RADD has no beam search; leave it out.")
        if unknown := sorted(set(given) - set(GENERATION_KWARGS)):
            raise ValueError(
                f"gen_kwargs has unknown settings {unknown}; besides the harness's, pass {GENERATION_KWARGS}."
            )
        if not 1 <= new_tokens < self.max_length:
            raise ValueError(
                f"max_gen_toks={new_tokens} must be at least 1 and less than max_length={self.max_length}, to "
                "leave room for a context: pass it in --gen_kwargs."
            )
        return until, new_tokens, self.settings | given | {"temperature": temperature if sampled else 0.0}

    def _text_until(self, ids: list[int], until: list[str]) -> str:
        if self.eot_token_id in ids:
            ids = ids[: ids.index(self.eot_token_id)]
        (text,) = decode_after_text([ids], self.tokenizer)  # special tokens stay, since one may end the text
        return text[: min([found for stop in until if stop and (found := text.find(stop)) >= 0], default=len(text))]

    # -----------------------------------------------------------------------------------------------------
    # Processes, and the facts of a run
    # -----------------------------------------------------------------------------------------------------

    def all_gather(self, tensor: Tensor) -> Tensor:
        return tensor if self.accelerator is None else self.accelerator.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list | None:
        if self.accelerator is None:
            return [obj]
        gathered = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def get_model_info(self) -> dict:
        """Returns all settings that affect the results, for the harness's results file."""
        return {
            "radd_hf": __version__,
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "max_length": self.max_length,
            "likelihood": self.likelihood,
            "rolling": self.rolling,
            "passes": self.passes,
            "seed": self.seed,
            **self.settings,
        }

    def _bar(self, work: Any, name: str, disable: bool) -> tqdm:
        total = {"total": work} if isinstance(work, int) else {"iterable": work}
        return tqdm(**total, desc=name, disable=disable or self.rank > 0)


@torch.no_grad()
def score_places(
    model: RaddForMaskedLM, canvases: Sequence[Canvas], places: Iterable[tuple[int, int]], batch_size: int
) -> Iterator[tuple[int, int, float, bool]]:
    """Scores one place at a time from left to right: tokens before the place are visible, the rest is masked.

    `likelihood.exact_likelihood` gives the same sums. This function also tells whether the token was the likeliest. It
    computes a canvas only once if several requests need it: the first canvases of answers with the same question and
    length are the same.

    Args:
        places: pairs (canvas, place in it). Canvases of equal length must follow each other.

    Yields:
        (canvas, place, -log p of its token in nats, whether no token is likelier), in the order of `places`.
    """
    waiting: list[tuple[int, int, int]] = []  # canvas, place, row of the forward pass
    rows: dict[tuple[int, ...], int] = {}  # visible tokens -> row of the forward pass

    def flush() -> Iterator[tuple[int, int, float, bool]]:
        length = len(canvases[waiting[0][0]].ids)
        input_ids = torch.full((len(rows), length), model.config.mask_token_id)  # (C, L)
        for visible, row in rows.items():
            input_ids[row, : len(visible)] = torch.tensor(visible, dtype=input_ids.dtype)
        positions = torch.tensor([[len(visible)] for visible in rows])  # (C, 1)
        device = model.device
        logits = model(input_ids=input_ids.to(device), output_positions=positions.to(device)).logits  # (C, 1, V)
        logprobs = logits[:, 0].float().log_softmax(dim=-1)  # (C, V)
        wanted = torch.tensor([row for _, _, row in waiting], device=device)  # (P,)
        token = torch.tensor([canvases[index].ids[place] for index, place, _ in waiting], device=device)  # (P,)
        nll = -logprobs[wanted, token]
        likeliest = logprobs.argmax(dim=-1)[wanted] == token
        for (index, place, _), *scores in zip(waiting, nll.tolist(), likeliest.tolist(), strict=True):
            yield index, place, *scores

    for index, place in places:
        ids = canvases[index].ids
        visible = tuple(ids[:place])
        other_length = waiting and len(canvases[waiting[0][0]].ids) != len(ids)
        if other_length or (visible not in rows and len(rows) == batch_size):
            yield from flush()
            waiting, rows = [], {}
        waiting.append((index, place, rows.setdefault(visible, len(rows))))
    if waiting:
        yield from flush()


def _device_of(name: str | None) -> torch.device:
    """Returns the device. Without `--device` the harness passes "cuda:0", which means the CPU if there is no GPU."""
    return find_device(None if name == "cuda:0" and not torch.cuda.is_available() else name)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    check_tokenizer(tokenizer, model.config)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer={tokenizer.name_or_path!r} has no eos_token, which separates documents: set it.")


if __name__ == "__main__":
    run_script(lambda argv: cli_evaluate())
