# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""RADD as the model "radd" of the lm-evaluation-harness.

    python -m radd_hf.evaluation.lm_eval --model radd --batch_size 32 --tasks lambada_openai \\
        --model_args pretrained=checkpoints/radd-austen

The harness asks for three things: log p(continuation | context), log p(text), and a continuation. Its other flags are
as ever; `accelerate launch -m radd_hf.evaluation.lm_eval ...` shares the requests among processes. Whatever is drawn at
random belongs to the request and to `seed`, not to its place among the others. So neither batches nor processes nor
`--limit` change an answer (beyond the rounding of a matrix product in a batch of another shape).

A text begins as a document does in training, after the EOS of the one before: EOS is what an empty context stands for.

Shapes: L length, V vocabulary, C canvases of a forward, P places of a forward at which a token is scored.
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
# The harness's own default, where a model's length leaves room for it.
MAX_GEN_TOKS = 256
# Of a task's generation_kwargs, or --gen_kwargs, what goes to `generate` as it is: all but what the harness decides.
DECIDED = "length", "temperature", "exact", "stop_on_eos"
GENERATION_KWARGS = tuple(name for name in TEXT_SETTINGS if name not in DECIDED)


class Canvas(NamedTuple):
    """A text whose tokens from `first` on are scored given those before: context and continuation."""

    ids: list[int]
    first: int


class Prompt(NamedTuple):
    """A request for text: which one, the ids of its context, keywords of `generate`."""

    request: int
    ids: list[int]
    settings: dict[str, Any]
    until: list[str]
    seed: int


@register_model("radd")
class RaddLM(TemplateLM):
    """A RADD model and its tokenizer, as the harness wants to see them. Likelihoods are in nats.

    Args (the `--model_args`):
        pretrained: folder or Hub repository of a RADD model, ours or the authors'; in Python also a model.
        tokenizer: name or folder, or a tokenizer. Default: that of `pretrained`; the authors' repositories have none,
            theirs is "gpt2".
        revision: of `pretrained` on the Hub, and of the tokenizer that comes with it.
        batch_size: rows of a forward. This and `device` win over the harness's flags of the same name.
        device: default: the accelerator if there is one. With several processes Accelerate says which.
        dtype: of weights and arithmetic, one of DTYPES. Logits are turned to float32 at the end.
        max_length: tokens of context and continuation together. Default: the length the model was trained at.
        likelihood: how log p(continuation | context) is computed: one of `likelihood.ESTIMATORS`. "ar_forward", the
            default, is the chain rule from left to right: exact, what an autoregressive model would be asked for, and
            at one row for each token of the continuation cheaper than a good estimate of the mean over all orders
            while continuations are short. "ar_backward" is exact, too, and so are "ar_confidence", "ar_margin" and
            "ar_entropy", in the order that the model chooses. The others, "k_stratified" for one, estimate other
            quantities, that mean for the most part, and carry the noise of their `passes`.
        rolling: how log p(text) is computed, likewise. "k_stratified", the default, takes `passes` rows a block where
            "ar_forward" takes one for each token.
        passes: masks drawn for each text that is estimated; even.
        seed: of masks and of generated text. The harness's own seeds change nothing here.
        max_gen_toks: tokens to generate where the task does not say. Default: 256, or half of max_length if that is
            less.
        method, steps: of `generate`, where the task does not say; see there.
        special_tokens_in_text: whether the spelling of a special token in a request stands for that token, as after a
            chat template was applied. Default: for its characters.
        trust_remote_code: taken, as the harness passes it on, and of no effect: this package has the code.

    Raises:
        ValueError: for settings that do not fit, a tokenizer that cannot be loaded, has no EOS or is another model's.
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
            # The harness reads a revision of digits as a number.
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
            raise ValueError(f"max_length={self.max_length} must be at least 2: a token, and one before it.")
        self.max_gen_toks = min(MAX_GEN_TOKS, self.max_length // 2) if max_gen_toks is None else max_gen_toks

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "RaddLM":
        """Makes the model as the harness does; a model argument wins over the default of a flag of its name."""
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
        """Returns the ids of a text as in training: nothing is added, and the text is read by [`encode_text`].

        Raises:
            ValueError: as `encode_text`.
        """
        return encode_text([string], self.tokenizer, "request", special_tokens_in_text=self.special_tokens_in_text)[0]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not self.tokenizer.chat_template:
            raise ValueError(f"tokenizer={self.tokenizer.name_or_path!r} has no chat template to apply.")
        self.special_tokens_in_text = True  # the template spells those that it means
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
        """Returns (log p(continuation | context), whether greedy decoding from left to right gives it) of each request.

        `loglikelihood` of the harness calls this with ids. A context that is too long loses its beginning.

        Args:
            requests: ((context, continuation) as text, ids of the context, ids of the continuation).

        Raises:
            ValueError: for a continuation without a token, or with more than `max_length`.
        """
        canvases = [self._fit(*request) for request in requests]
        # The longest first, so that whatever does not fit in memory fails at once.
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
            raise ValueError(f"continuation={text[1]!r} adds no token to its context, which ends in {text[0][-40:]!r}.")
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
        """Scores by an estimator; decodes greedily from left to right while each token is the continuation's."""
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
        """Estimates the nats of the scored tokens of all canvases, with masks that belong to the request."""
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
        """Returns log p(text) of each request, every token scored once; 0 for an empty text.

        In the harness's windows, of `max_length` tokens: the first begins with EOS, every other with the last token of
        the one before, and the last window, filled up with what lies before it, has as much context as there is room.
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

        The canvas is the context and `max_gen_toks` masks; a context that is too long loses its beginning. Contexts of
        one length share a batch. A request that comes several times, for a task's `repeats`, is drawn each time anew.

        Of a request's settings `until`, `max_gen_toks`, `do_sample` and `temperature` are the harness's: without
        do_sample or a temperature the likeliest token is taken, temperature 0. That is not yet a deterministic text,
        nor the continuation which `loglikelihood` calls greedy: the default method draws which places come first.
        `method=ordered` writes from left to right, and then both hold. GENERATION_KWARGS are those of `generate`.

        Raises:
            ValueError: for other settings (`num_beams` may be 1), and `max_gen_toks` that leaves no room for a context.
        """
        # Without padding, since a row's random numbers depend on the length of its canvas.
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
            raise ValueError(f"num_beams={gen_kwargs['num_beams']}: there is no beam search here; leave it out.")
        if unknown := sorted(set(given) - set(GENERATION_KWARGS)):
            raise ValueError(f"gen_kwargs have {unknown}; those known here beside the harness's: {GENERATION_KWARGS}.")
        if not 1 <= new_tokens < self.max_length:
            raise ValueError(
                f"max_gen_toks={new_tokens} must be at least 1 and less than max_length={self.max_length}, so that "
                "there is room for a context: pass it in --gen_kwargs."
            )
        return until, new_tokens, self.settings | given | {"temperature": temperature if sampled else 0.0}

    def _text_until(self, ids: list[int], until: list[str]) -> str:
        if self.eot_token_id in ids:
            ids = ids[: ids.index(self.eot_token_id)]
        (text,) = decode_after_text([ids], self.tokenizer)  # special tokens stay, as one may be what ends the text
        return text[: min([found for stop in until if stop and (found := text.find(stop)) >= 0], default=len(text))]

    # -----------------------------------------------------------------------------------------------------
    # Processes, and what is noted of a run
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
        """Returns the settings that decide about the results, given or not, for the harness's results file."""
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
    """Scores one place at a time from left to right: what lies before the place is visible, the rest is masked.

    `likelihood.exact_likelihood` gives the same sums; here it is also seen whether the token was the likeliest, and a
    canvas that several want is computed once: the first ones of answers that have a question and a length in common.

    Args:
        places: (canvas, place in it), those of equal length one after the other.

    Yields:
        (canvas, place, -log p of its token in nats, whether no token is likelier), in the order of `places`.
    """
    waiting: list[tuple[int, int, int]] = []  # canvas, place, row of the forward
    rows: dict[tuple[int, ...], int] = {}  # what is visible in each

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
    """Returns the device. The harness says "cuda:0" where its `--device` is left out; without a GPU that is the CPU."""
    return find_device(None if name == "cuda:0" and not torch.cuda.is_available() else name)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    check_tokenizer(tokenizer, model.config)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer={tokenizer.name_or_path!r} has no eos_token, which parts documents: set one.")


if __name__ == "__main__":
    run_script(lambda argv: cli_evaluate())
