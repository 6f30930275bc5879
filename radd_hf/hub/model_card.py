# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card, README.md of a folder or repository: what the model is, where it is from, how it is used.

`model_card` writes one of a model, `with_results` adds what it was trained on and what it was measured at.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..endings import visible
from ..modeling_radd import RaddForMaskedLM

# The task of AutoModelForMaskedLM; text-generation would promise a model that writes left to right.
TASK = "fill-mask"
TAGS = ["radd", "diffusion", "masked-diffusion", "text-generation"]

CARD = """\
---
{metadata}
---

# RADD

A masked-diffusion language model without time input: the network gives, at every masked position, the law of the
token there given all visible tokens. From Ou et al., [Your Absorbing Discrete Diffusion Secretly Models the
Conditional Distributions of Clean Data](https://arxiv.org/abs/2406.03736).

| | |
|---|---|
{facts}

## Usage

```python
{usage}
```

`generate` fills every mask of a canvas: text between a `prefix` and a `suffix`, after a `prefix`, or from nothing. It
samples by `method="tweedie"` (the default), `"euler"`, `"first_hitting"` or `"ordered"`, in fewer network evaluations
with fewer `steps`.{pipeline}

## License

The code in this folder is under the Apache License 2.0. The weights {weights_license}.
"""

PIPELINE = """ The pipeline fills the blanks of a text, `[MASK]` of one token and `[MASK:n]` of n, and gives the
log-probability of what it wrote."""

# Of a run's recipe (`config.yaml` in its folder), what tells one run from another.
RECIPE = (
    "dataset",
    "init_from",
    "loss_type",
    "max_steps",
    "batch_size",
    "length",
    "learning_rate",
    "lora_rank",
    "seed",
)

# Identifiers of licenses, by SPDX or the Hub: mit, cc-by-nc-4.0, GPL-2.0+.
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")

# Of the figures that `eval_ppl.py` writes: value, error, interval, digits.
FIGURES = {
    "bits per byte": ("bits_per_byte", "bits_per_byte_error", "bits_per_byte_interval", 4),
    "nats per token": ("nats_per_token", "standard_error", "interval", 4),
    "perplexity": ("perplexity", "perplexity_error", "perplexity_interval", 2),
}


@dataclass
class Origin:
    """What a model card says of the source. A local folder goes by its base name: paths mean nothing elsewhere."""

    name: str
    is_repository: bool
    layout: str
    revision: str | None = None  # commit of a repository
    weights: str | None = None  # which of a run's two sets of weights
    step: int | None = None  # optimizer steps of a run


def model_card(
    model: RaddForMaskedLM,
    origin: Origin,
    *,
    with_tokenizer: bool,
    license: str | None = None,
    repository: str | None = None,
) -> str:
    """README.md. Nothing in it depends on when, where or under which folder name it is written.

    Args:
        with_tokenizer: whether a tokenizer lies beside the model; usage is then in text and not in ids.
        license: identifier of the weights' license, such as "apache-2.0"; None names none.
        repository: name on the Hub, for the lines of usage.

    Raises:
        ValueError: for a license or a repository that cannot be one.
    """
    check_license("license", license)
    check_repository("repository", repository)
    check_repository("origin.name", origin.name if origin.is_repository else None)
    config = model.config
    source = f"[{origin.name}](https://huggingface.co/{origin.name})" if origin.is_repository else _code(origin.name)
    facts = {
        "Revision": origin.revision,
        "Weights": origin.weights,
        "Training step": origin.step,
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "Type": str(model.dtype).removeprefix("torch."),
        "Layers x width x heads": f"{config.num_hidden_layers} x {config.hidden_size} x {config.num_attention_heads}",
        "Length": config.max_position_embeddings,
        "Vocabulary": f"{config.vocab_size}, of which {config.mask_token_id} is the mask",
        "Noise": config.noise_type,
    }
    rows = {"Source": f"{source}, {_escaped(origin.layout)}"}
    rows |= {name: _escaped(value) for name, value in facts.items() if value is not None}
    return CARD.format(
        metadata=ModelCardData(license=license, library_name="transformers", pipeline_tag=TASK, tags=TAGS),
        weights_license="stay under the license of their source" if license is None else f"are under {license}",
        facts="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        usage=_usage(repository, min(config.max_position_embeddings, 64), with_tokenizer),
        pipeline=PIPELINE if with_tokenizer else "",
    )


def with_results(
    card: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    repository: str | None = None,
) -> str:
    """The card with sections on training and evaluation before its license, and the figures where the Hub reads them.

    Args:
        recipe: what `train_accelerate.py` writes to `config.yaml`.
        evaluation: what `eval_ppl.py --output` writes.
        repository: name on the Hub that the card is for; in the lines of usage, too.

    Raises:
        ValueError: for a card without the section "License", which those of `model_card` have, for an evaluation that
            lacks figures, and for a repository that cannot be one.
    """
    check_repository("repository", repository)
    if "\n## License\n" not in card:
        raise ValueError("card has no section '## License'; it must be one that model_card has written.")
    card = re.sub(r"^## (Training|Evaluation)\n.*?(?=^## )", "", card, flags=re.MULTILINE | re.DOTALL)  # of old
    if repository is not None:
        card = re.sub(r"^name = .*$", f'name = "{repository}"', card, flags=re.MULTILINE)
    sections = ""
    if recipe is not None:
        rows = [f"| `{name}` | {_escaped(recipe[name])} |" for name in RECIPE if recipe.get(name) is not None]
        sections += "\n".join(["## Training\n", "| | |", "|---|---|", *rows]) + "\n\n"
    if evaluation is not None:
        sections += _evaluation(evaluation)
    extended = ModelCard(card.replace("## License\n", f"{sections}## License\n"))
    if evaluation is not None:
        data = cast(ModelCardData, extended.data)
        data.model_name = repository or "RADD"
        data.eval_results = _eval_results(evaluation)
    return str(extended)


def check_license(argument: str, license: str | None) -> None:
    """Raises a ValueError for what is no identifier of a license; None names none."""
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(f"{argument}={license!r} must be the identifier of a license, such as apache-2.0.")


def check_repository(argument: str, repository: str | None) -> None:
    """Raises a ValueError for what is no name of a repository on the Hub; None names none."""
    if repository is None:
        return
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ValueError(
            f"{argument}={repository!r} must be the name of a repository, such as me/my-model. {error}"
        ) from error


def _escaped(value: Any) -> str:
    """Returns a value as text of one line that Markdown and HTML show and do not obey."""
    return re.sub(r"[&<>`*|\[\]\\~$]", lambda found: f"&#{ord(found[0])};", visible(str(value)))


def _code(name: str) -> str:
    """Returns a name as code or, since entities mean nothing there, as text where something must be escaped."""
    return f"`{name}`" if _escaped(name) == name else _escaped(name)


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    """The section with the figures, each with its error, and what they are of."""
    try:
        rows = []
        for title, (value, error, interval, digits) in FIGURES.items():
            if evaluation.get(value) is None:  # none per byte where text was dropped; null: beyond the largest number
                continue
            numbers = evaluation[value], evaluation[error], *evaluation[interval]
            if None not in numbers:
                figure, deviation, low, high = (f"{number:.{digits}f}" for number in numbers)
                rows.append(f"| {title} | {figure} | {deviation} | {low} .. {high} |")
        text = {name: _escaped(found) for name, found in evaluation.items()}
        return "\n".join(
            [
                "## Evaluation\n",
                f"On {_code(str(evaluation['dataset']))}, split {text['split']}, protocol {text['protocol']}: "
                f"{evaluation['n_tokens']:,} tokens in blocks of {text['length']},",
                f"estimator {text['estimator']} with {text['passes']} passes, seed {text['seed']}; "
                f"weights {text['weights']}, ids {text['ids']}.\n",
                "| | | standard error | 95 % interval |",
                "|---|---:|---:|---|",
                *rows,
                "\nUpper bounds of the negative log-likelihood; the errors are those of the estimate on this text.\n\n",
            ]
        )
    except KeyError as error:
        raise ValueError(f"evaluation lacks {error}; it must be what eval_ppl.py writes with --output.") from error
    except (TypeError, ValueError) as error:  # of a figure that is no number
        raise ValueError(f"evaluation must be what eval_ppl.py writes with --output: {error}.") from error


def _eval_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=visible(str(evaluation["dataset"])),
            dataset_name=visible(str(evaluation["dataset"])),
            dataset_split=visible(str(evaluation["split"])),
            metric_type=metric,
            metric_value=evaluation[metric],
        )
        for metric in ("bits_per_byte", "perplexity")
        if evaluation.get(metric) is not None
    ]


def _usage(repository: str | None, length: int, with_tokenizer: bool) -> str:
    """The lines that take a stranger to text; they need transformers and torch only."""
    name = f'name = "{repository}"' if repository else 'name = "..."  # of this repository, or the path of this folder'
    load = "model = AutoModel.from_pretrained(name, trust_remote_code=True)"
    if not with_tokenizer:
        lines = ["from transformers import AutoModel", "", name, load]
        return "\n".join([*lines, f"print(model.generate(prefix=[1, 2], suffix=[3], length={length}))  # token ids"])
    return "\n".join(
        [
            "from transformers import AutoModel, AutoTokenizer, pipeline",
            "",
            name,
            load,
            "tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
            f'ids = model.generate(prefix="Once", suffix="end.", length={length}, tokenizer=tokenizer)',
            "print(tokenizer.batch_decode(ids)[0])",
            "",
            'fill = pipeline("radd-infilling", model=name, trust_remote_code=True)',
            'print(fill("Once [MASK:4] the end.")[0]["text"])',
        ]
    )
