# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes the model card, the README.md of a model's folder or repository.

    python -m radd_hf.hub.model_card my-radd
    python -m radd_hf.hub.model_card my-radd --evaluation result.json --license apache-2.0

The model card says how to use the model, where it is from, how it was trained and what was measured. Each section is
made from the files in the folder. A fact that no file has is left out.

The command keeps the words that people write into a model card: the title and the text below it, and every section
without the line `MARK`. A section with that line is made anew.
"""

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any, cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..configuration_radd import RaddConfig
from ..data.documents import HELD_OUT_NOVEL, NOVELS
from ..endings import run_program, visible
from ..modeling_radd import RaddForMaskedLM
from ..options import OneLineParser
from ..settings_radd import SETTINGS
from .loading import load_model
from .runs import STEP, is_run
from .sources import read_beside

# The task of AutoModelForMaskedLM. text-generation would promise a model that generates from left to right.
TASK = "fill-mask"
TAGS = ["radd", "diffusion", "masked-diffusion", "text-generation"]

MARK = "<!-- radd_hf makes this section anew. To keep your own words here, delete this line. -->"

TITLE = """\
# RADD

A masked-diffusion language model. It fills the masked positions of a text, in any order. At each of them the network
gives the distribution of the token, given all visible tokens. It needs no time as an input.

The method is from Ou et al., [Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean
Data](https://arxiv.org/abs/2406.03736).
"""

USAGE = """\
```python
{code}
```

`generate` fills the text between a `prefix` and a `suffix`. Both may be left out. `length` counts all tokens, including
those of the prefix and the suffix. Pass fewer `steps` to generate faster, with a loss of quality.
"""

PIPELINE = """\
The pipeline fills the blanks of a text. `[MASK]` is a blank of one token, and `[MASK:n]` a blank of n tokens.
"""

EXACT = "`exact=True` sets them aside and draws from the network's distribution as it is."

CITATION = """\
```bibtex
@inproceedings{ou2025your,
  title     = {Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data},
  author    = {Jingyang Ou and Shen Nie and Kaiwen Xue and Fengqi Zhu and Jiacheng Sun and Zhenguo Li and Chongxuan Li},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2025},
  url       = {https://arxiv.org/abs/2406.03736}
}
```
"""

# Settings in a training run's `config.yaml` that distinguish runs.
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
PROCEDURE = (*RECIPE, "lr_schedule", "warmup_steps", "weight_decay", "hidden_dropout", "ema_decay", "mixed_precision")

# Identifiers of licenses, by SPDX or the Hub: mit, cc-by-nc-4.0, GPL-2.0+.
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
DATA_FILE = re.compile(r"\.(txt|jsonl|json|parquet)(\.\w+)?$")

# The figures that `eval_ppl.py` writes: value, error, interval, digits.
FIGURES = {
    "bits per byte": ("bits_per_byte", "bits_per_byte_error", "bits_per_byte_interval", 4),
    "nats per token": ("nats_per_token", "standard_error", "interval", 4),
    "perplexity": ("perplexity", "perplexity_error", "perplexity_interval", 2),
}

MEANING = """\
Bits per byte are the bits that the model needs to encode a byte of the text. A nat is 1.44 bits. Lower is better in
each row. The figures are upper bounds: the true ones are at most these. The standard error is that of the estimate on
this text. To repeat the evaluation, run this"""

# The rows of a model card about the origin of the model.
CARD_ROW = re.compile(r"^\| (Source|Revision|Weights|Training step) \| (.+) \|$", re.MULTILINE)


@dataclass
class Origin:
    """Holds the source of a model, for its model card. A local folder has its base name: paths differ elsewhere."""

    name: str
    is_repository: bool
    layout: str
    revision: str | None = None  # commit of a repository
    weights: str | None = None  # which of a run's two sets of weights
    step: int | None = None  # optimizer steps of a run


@dataclass(frozen=True)
class Results:
    """Holds the contents of the files of a training run and an evaluation; None if there is no such file."""

    recipe: Mapping[str, Any] | None = None  # `config.yaml` of the run
    metrics: Sequence[Mapping[str, Any]] = ()  # lines of its `metrics.jsonl`
    evaluation: Mapping[str, Any] | None = None  # `eval_ppl.py --output`


# ---------------------------------------------------------------------------------------------------------
# The model card
# ---------------------------------------------------------------------------------------------------------


def model_card(
    model: RaddForMaskedLM,
    origin: Origin | None,
    *,
    with_tokenizer: bool,
    license: str | None = None,
    repository: str | None = None,
    results: Results | None = None,
    old: str | None = None,
) -> str:
    """Makes the text of README.md. It does not depend on the time, the machine or the folder.

    Args:
        origin: source of the weights; None: the source in `old`.
        with_tokenizer: a tokenizer lies beside the model. The usage then shows text instead of ids.
        license: identifier of the weights' license, such as "apache-2.0"; None: that of `old`, or no license.
        repository: name on the Hub, for the section on usage.
        results: results of training and evaluation.
        old: the model card to update. Its title, its metadata and the sections that people wrote stay.

    Raises:
        ValueError: for an impossible license or repository, and for an evaluation without figures.
    """
    check_license("license", license)
    check_repository("repository", repository)
    check_repository("origin.name", origin.name if origin is not None and origin.is_repository else None)
    results = results or Results()
    old_data = {} if old is None else ModelCard(old).data.to_dict()
    license = license or old_data.get("license")
    config = cast(RaddConfig, model.config)
    step = origin.step if origin is not None else _step_of(old or "")
    made = {
        "Model": _model(model, config),
        "Source": None if origin is None else _source(origin),
        "Usage": _usage(repository, min(config.max_position_embeddings, 64), with_tokenizer),
        "Generation settings": _generation(model),
        "Training": None if results.recipe is None else _training(results, step),
        "Evaluation": None if results.evaluation is None else _evaluation(results.evaluation, repository, config),
        "Citation": CITATION,
        "License": _license(license),
    }
    sections: dict[str, str | None] = {"": f"{TITLE}\n"}
    for heading, body in made.items():
        sections[heading] = f"## {heading}\n\n{MARK}\n\n{body}\n" if body else body
    kept = _kept(sections, {} if old is None else _sections(ModelCard(old).text))
    text = "".join(kept.values()).rstrip("\n") + "\n"
    if repository is not None:  # also in the code that people wrote
        text = re.sub(r"^name = .*$", f'name = "{repository}"', text, flags=re.MULTILINE)
    return f"---\n{_metadata(old_data, license, _name_of(text, repository), results)}\n---\n\n{text}"


def read_results(folder: Path, evaluation: Path | None = None, recipe: Path | None = None) -> Results:
    """Reads the files of a folder about training and evaluation.

    Args:
        folder: a model with the files of its run in `training/`, or a checkpoint in a run folder.
        evaluation: the file that `eval_ppl.py --output` wrote; by default `evaluation.json` in the folder.
        recipe: `config.yaml` of the run, with `metrics.jsonl` beside it.

    Raises:
        ValueError: for a damaged file, and if `evaluation` or `recipe` is missing.
    """
    for argument, named in (("recipe", recipe), ("evaluation", evaluation)):
        if named is not None and not named.is_file():
            raise ValueError(f"{argument}={str(named)!r} must be a file; there is no such file.")
    run = run_of(folder)
    place = recipe.parent if recipe is not None else folder / "training" if run is None else run
    file = "config.yaml" if recipe is None else recipe.name
    figures = folder / "evaluation.json" if evaluation is None else evaluation

    def read(folder: Path, file: str) -> Any:
        # A folder that is not there, such as mine/training, could be the name of a repository of somebody else.
        return read_beside(str(folder), file) if folder.is_dir() else None

    lines = read(place, "metrics.jsonl") or ""
    return Results(
        recipe=read(place, file),
        metrics=[json.loads(line) for line in lines.splitlines() if line.startswith("{") and line.endswith("}")],
        evaluation=read(figures.parent, figures.name),
    )


def run_of(checkpoint: Path) -> Path | None:
    """Returns the run folder of a checkpoint, or None for another folder."""
    run = checkpoint.absolute().parent.parent
    inside = checkpoint.absolute().parent == run / "checkpoints" and re.fullmatch(STEP, checkpoint.name)
    return run if inside and is_run(run) else None


def _sections(text: str) -> dict[str, str]:
    """Splits Markdown at its headings of level 2, outside of code. The key "" has the text before the first one."""
    parts, heading, in_code = {"": ""}, "", False
    for line in text.lstrip("\n").splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if line.startswith("## ") and not in_code:
            heading = line[3:].strip()
        parts[heading] = parts.get(heading, "") + line
    return {heading: f"{part.rstrip()}\n\n" for heading, part in parts.items()}


def _kept(made: dict[str, str | None], old: dict[str, str]) -> dict[str, str]:
    """Returns the sections of `old` in their order, with marked sections made anew, and inserts the new sections.

    A new section follows the section before it in `made`, and the sections that people wrote below that one.
    A section that is "" is left out. One that is None is not known, so the old one stays.
    """
    kept = [
        (heading, part if MARK not in part or (new := made.get(heading)) is None else new)
        for heading, part in old.items()
    ]
    last = -1
    for heading, part in made.items():
        headings = [each for each, _ in kept]
        if heading in headings:
            last = headings.index(heading)
        elif part:
            last += 1
            while last < len(kept) and headings[last] not in made:
                last += 1
            kept.insert(last, (heading, part))
    return dict(kept)


def _name_of(text: str, repository: str | None) -> str:
    title = re.match(r"# (.+)", text)
    return repository or (visible(title[1].strip()) if title else "RADD")


def _metadata(old: dict[str, Any], license: str | None, name: str, results: Results) -> str:
    recipe, evaluation = results.recipe or {}, results.evaluation
    dataset, base = str(recipe.get("dataset")), str(recipe.get("init_from"))
    known: dict[str, Any] = {"license": license, "library_name": "transformers", "pipeline_tag": TASK}
    known["tags"] = old.get("tags", TAGS)
    if dataset == "austen":
        known |= {"language": "en", "datasets": [dataset]}
    elif _is_on_hub(dataset):
        known["datasets"] = [dataset]
    if _is_on_hub(base):
        known["base_model"] = base
    data = ModelCardData(**(old | known))
    if evaluation is not None:
        data.model_name = name
        data.eval_results = _eval_results(evaluation)
    return data.to_yaml()


# ---------------------------------------------------------------------------------------------------------
# Sections of the model card
# ---------------------------------------------------------------------------------------------------------


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _model(model: RaddForMaskedLM, config: RaddConfig) -> str:
    return _table(
        {
            "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
            "Type": str(model.dtype).removeprefix("torch."),
            "Layers x width x heads": f"{config.num_hidden_layers} x {config.hidden_size} x "
            f"{config.num_attention_heads}",
            "Longest text": f"{config.max_position_embeddings} tokens",
            "Vocabulary": f"{config.vocab_size} tokens; the mask has the id {config.mask_token_id}",
            "Noise schedule": _escaped(config.noise_type),
        }
    )


def _source(origin: Origin) -> str:
    name = f"[{origin.name}](https://huggingface.co/{origin.name})" if origin.is_repository else _code(origin.name)
    facts = {"Revision": origin.revision, "Weights": origin.weights, "Training step": origin.step}
    rows = {"Source": f"{name}, {_escaped(origin.layout)}"}
    return _table(rows | {name: _escaped(value) for name, value in facts.items() if value is not None})


def _usage(repository: str | None, length: int, with_tokenizer: bool) -> str:
    """Shows how a user generates a text. The code needs only transformers and torch."""
    name = f'name = "{repository}"' if repository else 'name = "..."  # name of this repository, or path of this folder'
    load = "model = AutoModel.from_pretrained(name, trust_remote_code=True)"
    if not with_tokenizer:
        lines = ["from transformers import AutoModel", "", name, load]
        code = [*lines, f"print(model.generate(prefix=[1, 2], suffix=[3], length={length}))  # token ids"]
    else:
        code = [
            "from transformers import AutoModel, AutoTokenizer, pipeline",
            "",
            name,
            load,
            "tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
            f'ids = model.generate(prefix="Once", suffix=" the end.", length={length}, tokenizer=tokenizer)',
            "print(tokenizer.decode(ids[0]))",
            "",
            'fill = pipeline("radd-infilling", model=name, trust_remote_code=True)',
            'print(fill("Once [MASK:4] the end.")[0]["text"])',
        ]
    return USAGE.format(code="\n".join(code)) + (PIPELINE if with_tokenizer else "")


def _generation(model: RaddForMaskedLM) -> str:
    """Names the settings that are saved with the model; "" if there are none."""
    own = {name: getattr(model.generation_config, name, None) for name in SETTINGS if name != "information_profile"}
    saved = [f"{_code(f'{name}={value!r}')}" for name, value in own.items() if value is not None]
    if not saved:
        return ""
    return f"`generate` and the pipeline use the settings in generation_config.json: {', '.join(saved)}.\n{EXACT}\n"


def _training(results: Results, step: int | None) -> str:
    recipe = cast(Mapping[str, Any], results.recipe)
    rows = {f"`{name}`": _escaped(_public(recipe[name])) for name in PROCEDURE if recipe.get(name) is not None}
    said = ["The settings of `radd train`, from the run's config.yaml:\n", _table(rows)]
    if recipe.get("dataset") == "austen":
        *titles, last = [title.title().replace(" And ", " and ") for title in NOVELS if title != HELD_OUT_NOVEL]
        text = f"`austen` is the text of novels by Jane Austen, in the public domain: {', '.join(titles)}, and {last}."
        said.append(f"{fill(text, 120)}\n{HELD_OUT_NOVEL} is held out: the model was not trained on it.\n")
    step = step or recipe.get("max_steps")
    sizes = (step, recipe.get("batch_size"), recipe.get("length"))
    if all(isinstance(size, int) for size in sizes):
        steps, rows_of_a_step, length = cast(tuple[int, int, int], sizes)
        tokens = steps * rows_of_a_step * length
        text = f"{steps:,} steps of {rows_of_a_step:,} rows of {length:,} tokens are {tokens:,} tokens."
        logged = [line.get("tokens_per_second") for line in results.metrics if line.get("step", 0) <= steps]
        speeds = [float(speed) for speed in logged if isinstance(speed, (int, float)) and speed > 0]
        if speeds:
            speed = median(speeds)
            text += f"\nAt the log's median of {speed:,.0f} tokens a second, they take {_duration(tokens / speed)}."
        said.append(f"{text}\n")
    final = results.metrics[-1] if results.metrics else {}
    figures = final.get("final_bits_per_byte"), final.get("final_bits_per_byte_error")
    if results.evaluation is None and final.get("step") == step and all(isinstance(n, float) for n in figures):
        figure, error = figures
        said.append(f"The run ended at {figure:.4f} bits per byte of its held-out text (standard error {error:.4f}).\n")
    return "\n".join(said)


def _evaluation(evaluation: Mapping[str, Any], repository: str | None, config: RaddConfig) -> str:
    """Shows the figures, each with its error, and the command that prints them."""
    where = ":" if repository else " in the folder:"
    try:
        rows = []
        for title, (value, error, interval, digits) in FIGURES.items():
            if evaluation.get(value) is None:  # no figure per byte if text was dropped; null: too large for a float
                continue
            numbers = evaluation[value], evaluation[error], *evaluation[interval]
            if None not in numbers:
                figure, deviation, low, high = (f"{number:.{digits}f}" for number in numbers)
                rows.append(f"| {title} | {figure} | {deviation} | {low} .. {high} |")
        text = {name: _escaped(_public(found)) for name, found in evaluation.items()}
        return "\n".join(
            [
                f"Data set {_code(_public(evaluation['dataset']))}, split {text['split']}, protocol "
                f"{text['protocol']}: {evaluation['n_tokens']:,} tokens in blocks of {text['length']}.",
                f"Estimator {text['estimator']} with {text['passes']} passes and seed {text['seed']}. "
                f"Fingerprints: weights {text['weights']}, token ids {text['ids']}.\n",
                "| | | standard error | 95 % interval |",
                "|---|---:|---:|---|",
                *rows,
                f"\n{MEANING}{where}\n\n```bash\n{_command(evaluation, repository, config)}\n```\n",
            ]
        )
    except KeyError as error:
        raise ValueError(f"evaluation lacks {error}; it must be what eval_ppl.py writes with --output.") from error
    except (TypeError, ValueError) as error:  # of a figure that is no number
        raise ValueError(f"evaluation must be what eval_ppl.py writes with --output: {error}.") from error


def _command(evaluation: Mapping[str, Any], repository: str | None, config: RaddConfig) -> str:
    """Returns the command that evaluates the model again. It leaves out settings at their defaults."""
    usual = {"protocol": "clean", "estimator": "k_stratified", "length": config.max_position_embeddings, "seed": 0}
    flags = {"dataset": "dataset", "dataset_config": "config", "split": "split", "protocol": "protocol"}
    flags |= {name: name for name in ("length", "estimator", "passes", "seed")}
    words = ["radd", "eval", "--model", repository or "."]
    for flag, name in flags.items():
        value = evaluation.get(name)
        if value is not None and value != usual.get(name):
            words += [f"--{flag}", visible(_public(value))]
    return shlex.join(words)


def _eval_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    name, source = (visible(_public(evaluation.get(key) or evaluation["dataset"])) for key in ("dataset", "source"))
    config = evaluation.get("config")
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=source,
            dataset_name=name,
            dataset_config=None if config is None else visible(str(config)),
            dataset_split=visible(str(evaluation["split"])),
            metric_type=metric,
            metric_name=title,
            metric_value=evaluation[metric],
        )
        for title, (metric, *_) in FIGURES.items()
        if metric != "nats_per_token" and evaluation.get(metric) is not None
    ]


def _license(license: str | None) -> str:
    weights = "stay under the license of their source" if license is None else f"are under {license}"
    return f"The code in this folder is under the Apache License 2.0. The weights {weights}.\n"


# ---------------------------------------------------------------------------------------------------------
# Names and words
# ---------------------------------------------------------------------------------------------------------


def check_license(argument: str, license: str | None) -> None:
    """Raises a ValueError for a text that cannot be the identifier of a license. None means no license."""
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(f"{argument}={license!r} must be the identifier of a license, such as apache-2.0.")


def check_repository(argument: str, repository: str | None) -> None:
    """Raises a ValueError for a text that cannot name a repository on the Hub. None means no repository."""
    if repository is None:
        return
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ValueError(
            f"{argument}={repository!r} must be the name of a repository, such as me/my-model. {error}"
        ) from error


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~/")) or Path(name).exists()


def _is_on_hub(name: str) -> bool:
    """Tells whether a name can be that of a repository and is not that of a local file or folder."""
    if "/" not in name or _is_path(name) or DATA_FILE.search(name):
        return False
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True


def _public(value: Any) -> str:
    """Returns a value as text. Of a local path it keeps only the last name, because paths differ elsewhere."""
    text = str(value)
    return Path(text).name if isinstance(value, str) and _is_path(text) else text


def _escaped(value: Any) -> str:
    """Returns a value as one line of text that Markdown and HTML show literally."""
    return re.sub(r"[&<>`*|\[\]\\~$]", lambda found: f"&#{ord(found[0])};", visible(str(value)))


def _code(name: str) -> str:
    """Returns a name as code, or as text if a character must be escaped: entities have no meaning in code."""
    return f"`{name}`" if _escaped(name) == name else _escaped(name)


def _step_of(card: str) -> int | None:
    rows = dict(CARD_ROW.findall(card))
    return int(rows["Training step"]) if rows.get("Training step", "").isdecimal() else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


# ---------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------


def make_parser() -> OneLineParser:
    """Makes the parser of the command line."""
    parser = OneLineParser(prog="radd_hf.hub.model_card", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of a model; its README.md is made or updated")
    parser.add_argument(
        "--recipe", type=Path, help="config.yaml of the run (default: training/config.yaml in the folder)"
    )
    parser.add_argument(
        "--evaluation", type=Path, help="output of eval_ppl.py (default: evaluation.json in the folder)"
    )
    parser.add_argument(
        "--license", help="license of the weights, such as apache-2.0 (default: that of the old model card)"
    )
    parser.add_argument("--repository", help="name on the Hub, such as me/my-radd, for the section on usage")
    return parser


def card_of(
    folder: Path,
    *,
    recipe: Path | None = None,
    evaluation: Path | None = None,
    license: str | None = None,
    repository: str | None = None,
    model: RaddForMaskedLM | None = None,
) -> str:
    """Makes the model card of a folder anew from its files, and keeps the words that people wrote into the old one.

    Args:
        model: the model in the folder, if it is loaded already.

    Raises:
        ValueError: as [`model_card`] and [`read_results`], and for a folder without a model.
    """
    check_license("license", license)
    check_repository("repository", repository)
    results = read_results(folder, evaluation, recipe)
    model = model or load_model(str(folder), dtype="auto", argument="folder")  # in the precision of the file
    old = read_card(folder / "README.md") if (folder / "README.md").is_file() else None
    return model_card(
        model,
        origin_of(folder) if old is None else None,
        with_tokenizer=(folder / "tokenizer_config.json").is_file(),
        license=license,
        repository=repository,
        results=results,
        old=old,
    )


def read_card(file: Path, argument: str = "card") -> str:
    """Reads a model card.

    Raises:
        ValueError: for a file that is missing or has metadata that cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
        ModelCard(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{argument}={str(file)!r} must be a model card in Markdown; it cannot be read. {error}"
        ) from error
    return text


def origin_of(folder: Path, revision: str | None = None) -> Origin:
    """Returns the origin of a local folder in our layout: for a checkpoint of a run, the run and the step."""
    run = run_of(folder)
    if run is None:
        return Origin(folder.resolve().name, False, "a radd_hf model", revision)
    step = int(folder.name.removeprefix("step_"))
    return Origin(run.name, False, "a radd_hf training run", None, "exponential moving average", step)


def main(argv: list[str]) -> None:
    """Writes README.md of a folder with the arguments of a command line."""
    args: argparse.Namespace = make_parser().parse_args(argv)
    text = card_of(**vars(args))
    (args.folder / "README.md").write_text(text, encoding="utf-8")
    print(f"{visible(str(args.folder / 'README.md'))} is written.")


if __name__ == "__main__":
    run_program(main, "radd_hf.hub.model_card")
