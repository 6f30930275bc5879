# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Converts checkpoints of the RADD paper (arXiv:2406.03736) to folders for the Hub, and back.

    radd convert JingyangOu/radd-t-dce radd-t-dce --tokenizer gpt2
    radd convert RUN_FOLDER my-model --tokenizer gpt2        the averaged weights (EMA); --no-ema: the raw ones
    radd convert my-model their-model --to-original
    radd convert my-model for-an-endpoint --tokenizer my-model --endpoint

A source has one of three layouts. Its files show which:

    released   config.json (nested) and model.safetensors, or its parts, or pytorch_model.bin: a folder or a repository
    run        .hydra/config.yaml and checkpoints-meta/checkpoint.pth: a training run of the authors' code, or one
               `.pth` file of such a run
    ours       a folder or a repository that `save_pretrained` of this package wrote, or a run folder of this package
               (its newest whole checkpoint)

A source is loaded into memory and written to one of two targets: a folder of ours with a model card (`convert`), or the
authors' released layout (`to_original`). A target appears complete or not at all.
"""

import json
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
import yaml
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import extract_commit_hash

from ..configuration_radd import RaddConfig
from ..data.documents import add_mask_token
from ..endings import run_program, visible
from ..modeling_radd import RaddForMaskedLM, default_frequencies
from ..options import OneLineParser
from ..settings_radd import shortened
from .loading import (
    FREQUENCIES,
    check_finite,
    check_heads,
    check_tokenizer,
    check_weight_names,
    config_of,
    first_few,
    load_model,
    load_tokenizer,
)
from .model_card import Origin, Results, check_license, check_repository, model_card, origin_of, read_card, read_results
from .runs import newest_model
from .sources import RUN_CHECKPOINT, RUN_CONFIG, WEIGHTS, find_beside, read_config, weight_files

DTYPES = ("float32", "bfloat16", "float16")

# The code in a checkpoint needs these packages if radd_hf is not installed. The bounds are those of setup.cfg.
REQUIREMENTS = ("torch>=2.11", "transformers>=5.14", "huggingface_hub>=1.33", "safetensors>=0.8", "tokenizers>=0.22.2")
HANDLER = Path(__file__).parents[1] / "serving" / "handler.py"

# The table of names is in modeling_radd.py. Its inverse gives the authors' names.
TO_OURS = get_checkpoint_conversion_mapping(RaddConfig.model_type)
TO_THEIRS = [rule.reverse_transform() for rule in reversed(TO_OURS)]


# ---------------------------------------------------------------------------------------------------------
# The public functions
# ---------------------------------------------------------------------------------------------------------


def convert(
    source: str | Path,
    target: str | Path,
    *,
    tokenizer: str | Path | None = None,
    use_ema: bool = True,
    dtype: str | None = None,
    license: str | None = None,
    card: str | Path | None = None,
    endpoint: bool = False,
    push_to_hub: str | None = None,
) -> Path:
    """Writes a complete folder in our layout: weights under our names, configuration, code files, model card.

    The weights equal, bit for bit, those that `RaddForMaskedLM.from_pretrained` reads from a released source. The same
    source always gives the same bytes.

    Args:
        source: folder, repository or `.pth` file in one of the layouts that the module describes.
        target: folder to make. It must not exist, or must be empty.
        tokenizer: name or folder of the tokenizer to put beside the model. A tokenizer without a mask token gets one
            if its next id is that of the model's mask. None: the tokenizer in the source, if the source is a folder.
        use_ema: take the moving average of a run's weights, which the authors evaluate. False: take the raw weights.
        dtype: "float32", "bfloat16" or "float16"; None: the type of the source.
        license: identifier of the weights' license for the model card, such as "apache-2.0"; None: no license.
        card: an earlier model card. The new one keeps its title and the sections that people wrote.
        endpoint: also write the files of an inference endpoint, see [`write_endpoint`]. They need the tokenizer.
        push_to_hub: name of a repository to upload the folder to.

    Returns:
        The path of the target.

    Raises:
        ValueError: for a source that is damaged, holds another model or contradicts itself; for a tokenizer with
            another mask than the model; for a target in use; for a model card that cannot be read; and for an
            impossible license or repository. The target is then not made.
    """
    source = newest_model(str(source), "source")
    if tokenizer is None and (Path(source) / "tokenizer_config.json").is_file():
        tokenizer = source
    check_license("license", license)
    check_repository("push_to_hub", push_to_hub)
    if endpoint and tokenizer is None:
        raise ValueError(
            "endpoint=True needs a tokenizer, because an endpoint takes and returns text: pass tokenizer=NAME."
        )
    old = None if card is None else read_card(Path(card))
    target = _free_target(target)
    model, origin = _load(source, use_ema=use_ema, dtype=dtype)
    text_tools = None if tokenizer is None else _load_tokenizer(tokenizer, cast(RaddConfig, model.config))
    with _complete_or_absent(target) as folder:
        model.save_pretrained(folder)
        if text_tools is not None:
            text_tools.save_pretrained(folder)
        new = model_card(
            model,
            origin,
            with_tokenizer=text_tools is not None,
            license=license,
            repository=push_to_hub,
            results=_results(source, dtype),
            old=old,
        )
        (folder / "README.md").write_text(new, encoding="utf-8")
        if endpoint:
            write_endpoint(folder)
    if push_to_hub is not None:
        _push(target, push_to_hub)
    return target


def write_endpoint(folder: str | Path) -> None:
    """Writes `handler.py` and `requirements.txt` beside a saved model. An inference endpoint of the Hub needs them.

    Raises:
        ValueError: for a folder without a model, a tokenizer or the code that the handler calls; for code of another
            version of this package.
    """
    folder = Path(folder)
    for name in ("config.json", "tokenizer_config.json", "pipeline_radd.py"):
        if not (folder / name).is_file():
            raise ValueError(
                f"folder={str(folder)!r} has no {name}; pass a folder with a radd_hf model and its tokenizer."
            )
    if (folder / "pipeline_radd.py").read_bytes() != (HANDLER.parents[1] / "pipeline_radd.py").read_bytes():
        raise ValueError(
            f"folder={str(folder)!r} carries the code of another version of radd_hf. Convert it again: radd convert "
            f"{folder} NEW --tokenizer {folder} --endpoint."
        )
    for name, content in endpoint_files().items():
        (folder / name).write_bytes(content)


def endpoint_files() -> dict[str, bytes]:
    """Returns the files of an inference endpoint by name."""
    return {"handler.py": HANDLER.read_bytes(), "requirements.txt": "".join(f"{n}\n" for n in REQUIREMENTS).encode()}


def to_original(
    source: str | Path,
    target: str | Path,
    *,
    use_ema: bool = True,
    dtype: str | None = None,
    push_to_hub: str | None = None,
) -> Path:
    """Writes the authors' released layout, which their code loads: a nested config.json and model.safetensors.

    Converting to our layout and back returns every tensor bit for bit. The authors' config.json has no fields for pad,
    bos and eos ids and for the initialisation, so these are left out.

    Args and Returns: as [`convert`].

    Raises:
        ValueError: as [`convert`], and for a field of the configuration that the authors' network cannot express.
    """
    check_repository("push_to_hub", push_to_hub)
    target = _free_target(target)
    model, _ = _load(newest_model(str(source), "source"), use_ema=use_ema, dtype=dtype)
    config = cast(RaddConfig, model.config)
    nested = _to_authors(config, model.dtype)
    state = {_rename(name, TO_THEIRS): tensor for name, tensor in model.state_dict().items()}
    state[FREQUENCIES] = default_frequencies(config)
    with _complete_or_absent(target) as folder:
        (folder / "config.json").write_text(json.dumps(nested, indent=2) + "\n", encoding="utf-8")
        save_file(state, folder / WEIGHTS[0], metadata={"format": "pt"})
    if push_to_hub is not None:
        _push(target, push_to_hub)
    return target


# ---------------------------------------------------------------------------------------------------------
# Source: loads the model from any layout, and tells its origin
# ---------------------------------------------------------------------------------------------------------


def _load(source: str, *, use_ema: bool, dtype: str | None) -> tuple[RaddForMaskedLM, Origin]:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {DTYPES}, or None for the type of the source.")
    path = Path(source)
    if path.is_file() or (path / RUN_CONFIG).is_file() or (path / RUN_CHECKPOINT).is_file():
        return _load_run(path, use_ema, dtype)
    if not use_ema:
        raise ValueError(f"use_ema=False needs a training run of the authors' code; {source} holds one set of weights.")
    settings = read_config(source, argument="source")
    # The other files of a repository are read from the same commit.
    revision = extract_commit_hash(str(find_beside(source, "config.json")), None)
    name = path.resolve().name if path.is_dir() else source
    if "model_type" in settings:
        model = load_model(source, revision=revision, dtype=dtype or "auto", argument="source")
        return model, origin_of(path) if path.is_dir() else Origin(name, True, "a radd_hf model", revision)
    model = _load_released(source, settings, revision, dtype)
    return model, Origin(name, not path.is_dir(), "the authors' layout", revision)


def _results(source: str, dtype: str | None) -> Results:
    """Reads the files of a folder about training and evaluation. With another dtype the evaluation no longer holds."""
    results = read_results(Path(source)) if Path(source).is_dir() else Results()
    return results if dtype is None else replace(results, evaluation=None)


def _load_released(source: str, settings: dict, revision: str | None, dtype: str | None) -> RaddForMaskedLM:
    config, state = config_of(settings, source), _read_weights(source, revision)
    _check_state(state, config, source)
    return _build(config, state, dtype, source)


def _read_weights(source: str, revision: str | None) -> dict[str, Tensor]:
    """Reads the weights of a model by name, from one file or several, in safetensors' or torch's format."""
    state: dict[str, Tensor] = {}
    try:
        for file in weight_files(source, revision):
            state |= load_file(file) if file.suffix == ".safetensors" else _read_pth(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"source={source!r}: its weights are missing or damaged. {error}") from error
    if not state:
        raise ValueError(f"source={source!r} has no weights; the folder must hold one of {', '.join(WEIGHTS)}.")
    if not _is_state(state):
        raise ValueError(f"source={source!r}: its weights must be tensors by name; found the keys {first_few(state)}.")
    return state


def _is_state(value: Any) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _load_run(path: Path, use_ema: bool, dtype: str | None) -> tuple[RaddForMaskedLM, Origin]:
    """Loads a training run of the authors' code, given by its folder or by one of its `.pth` files."""
    run = path.absolute().parent.parent if path.is_file() else path.resolve()
    file = path.absolute() if path.is_file() else run / RUN_CHECKPOINT
    name = f"{run.name}/{file.relative_to(run)}" if path.is_file() else run.name
    try:
        settings = yaml.safe_load((run / RUN_CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"source={str(path)!r}: cannot read {RUN_CONFIG} of its run. {error}") from error
    config = config_of(settings, name)

    checkpoint = _read_pth(file)
    state, step = checkpoint.get("model"), checkpoint.get("step")
    if not _is_state(state):
        raise ValueError(
            f"{file.name} must hold tensors by name under the key 'model'; found the keys {first_few(checkpoint)}."
        )
    _check_state(state, config, file.name)
    weights = "raw"
    if use_ema:
        state = _averaged(state, checkpoint.get("ema"), config, file.name)
        weights = "exponential moving average"
    step = step if isinstance(step, int) else None
    origin = Origin(name, False, "a training run of the authors' code", weights=weights, step=step)
    return _build(config, state, dtype, file.name), origin


def _read_pth(file: Path) -> dict:
    """Reads a checkpoint without running code from it.

    A pickle can call any function when it is opened. `weights_only` allows only tensors and plain containers. Torch
    does not compress, so an archive that grows when it is opened is not torch's.
    """
    try:
        packed = zipfile.is_zipfile(file)
        if packed and sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > file.stat().st_size:
            raise RuntimeError(
                "It is an archive that unpacks to more bytes than it has, and torch.save does not compress."
            )
        # A mapped file is read only where it is used. The optimizer's state, half of the file, is not used. Files from
        # before torch 1.6 cannot be mapped.
        checkpoint = torch.load(file, weights_only=True, map_location="cpu", mmap=packed)
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file.name} is not a whole file of torch.save. If it was cut short, copy it again. "
            f"{shortened(str(error))}"
        ) from error
    except Exception as error:  # a hostile or damaged pickle can end in any
        raise ValueError(
            f"{file.name} is refused: it is damaged, or opening it would run code ({_foreign_code(file)}). A "
            "checkpoint must hold only tensors and plain containers. If you trust it, open it with the code that wrote "
            "it, and save {'model': state_dict, 'ema': state_dict, 'step': int}."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{file.name} must hold the dictionary of a training run; it holds a {type(checkpoint).__name__}."
        )
    return checkpoint


def _foreign_code(file: Path) -> str:
    """Names the functions that a pickle would call. It reads the byte code without running it."""
    try:
        return ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(str(file))) or "none named"
    except Exception:
        return "its byte code cannot be read"


def _averaged(state: dict[str, Tensor], ema: Any, config: RaddConfig, file: str) -> dict[str, Tensor]:
    """Gives names to the moving averages, which a run stores as a list without names.

    The list was made from `parameters()` of the network, and `state` is `state_dict()` of the same network. Both visit
    the modules and their parameters in the order of registration; the state dict also has buffers. No parameter is
    shared, and all of them require a gradient. So the n-th average belongs to the n-th name that is not a buffer's.
    Shapes alone cannot tell: the weight and the bias of a norm have the same shape.
    """
    if not isinstance(ema, dict) or not isinstance(ema.get("shadow_params"), list):
        raise ValueError(
            f"{file} has no moving average (a list 'shadow_params' in 'ema'). Pass use_ema=False (--no-ema) to take "
            "the raw weights."
        )
    averages, names = ema["shadow_params"], [name for name in state if name != FREQUENCIES]
    # The names must be in the order of state_dict(); a file that was saved again may have sorted names. Our network
    # registers the same parameters in the same order.
    if [_rename(name, TO_OURS) for name in names] != list(_expected_shapes(config)):
        raise ValueError(
            f"{file}: the names in 'model' are not in the network's order, so the moving averages cannot be named. "
            "Pass use_ema=False (--no-ema) to take the raw weights."
        )
    if len(averages) != len(names):
        raise ValueError(
            f"{file} has {len(averages)} moving averages and {len(names)} parameters; the numbers must agree."
        )
    for name, average in zip(names, averages, strict=True):
        shape = tuple(average.shape) if isinstance(average, Tensor) else type(average).__name__
        if shape != tuple(state[name].shape):
            raise ValueError(f"{file}: the moving average of {name} is {shape}, not {tuple(state[name].shape)}.")
    return dict(zip(names, averages, strict=True))


def _check_state(state: dict[str, Tensor], config: RaddConfig, source: str) -> None:
    """Raises a ValueError if weights do not have the authors' names and the shapes of the configuration."""
    expected = _expected_shapes(config)
    found = {_rename(name, TO_OURS): (name, tensor) for name, tensor in state.items() if name != FREQUENCIES}
    missing = {_rename(name, TO_THEIRS) for name in expected.keys() - found.keys()}
    check_weight_names(missing, {found[name][0] for name in found.keys() - expected.keys()}, source)
    for ours, shape in expected.items():
        name, tensor = found[ours]
        if tensor.shape != shape:
            raise ValueError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, and the configuration {tuple(shape)}."
            )
    check_heads(state.get(FREQUENCIES), config, source)


def _build(config: RaddConfig, state: dict[str, Tensor], dtype: str | None, source: str) -> RaddForMaskedLM:
    """Builds the model with `from_pretrained`, which gives the same bits as a direct load."""
    # The frequencies are float32 even beside weights of 16 bits. "auto" must not take their type for the model's.
    state = {name: tensor for name, tensor in state.items() if name != FREQUENCIES}
    model = RaddForMaskedLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype or "auto")
    check_finite(model, source)
    return model


def _expected_shapes(config: RaddConfig) -> dict[str, torch.Size]:
    """Returns the shapes of all parameters by our names, in the order of registration."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in RaddForMaskedLM(config).named_parameters()}


def _rename(name: str, rules: list[WeightRenaming]) -> str:
    for rule in rules:
        name, _ = rule.rename_source_key(name)
    return name


# ---------------------------------------------------------------------------------------------------------
# Target: writes the files beside the weights
# ---------------------------------------------------------------------------------------------------------


def _to_authors(config: RaddConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the nested configuration that the authors' network, noise and scripts read from a released model.

    This is the inverse of `RaddConfig.from_dict` for a nested dictionary.

    Raises:
        ValueError: for a setting that is a constant in their code and has another value here.
    """
    constants = {
        "mask_token_id": config.vocab_size - 1,
        "num_tokens": None,
        "intermediate_size": 4 * config.hidden_size,
        "layer_norm_eps": 1e-5,
    }
    if config.noise_type == "loglinear":
        constants["noise_eps"] = 1e-3
    for name, constant in constants.items():
        if getattr(config, name) != constant:
            raise ValueError(
                f"{name}={getattr(config, name)} cannot be written in the authors' layout: in their code it is "
                f"{constant}."
            )
    rope = cast(dict, config.rope_parameters)
    if rope["rope_type"] != "default" or rope["rope_theta"] != 10000:
        raise ValueError(
            f"rope_parameters={rope} cannot be written in the authors' layout: in their code the type is 'default' and "
            "the base 10000."
        )
    return {
        "tokens": config.vocab_size - 1,
        "noise": {"type": config.noise_type, "sigma_min": config.sigma_min, "sigma_max": config.sigma_max},
        "model": {
            "type": "ddit_wot",
            "hidden_size": config.hidden_size,
            "length": config.max_position_embeddings,
            "n_blocks": config.num_hidden_layers,
            "n_heads": config.num_attention_heads,
            "dropout": config.hidden_dropout,
            "use_checkpoint": False,
            # The type of products inside autocast, not that of weights. For float32 weights the authors use float16.
            "dtype": "bfloat16" if dtype == torch.bfloat16 else "float16",
        },
    }


def _load_tokenizer(name: str | Path, config: RaddConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(str(name))
    add_mask_token(tokenizer, config.mask_token_id)
    check_tokenizer(tokenizer, config)
    return tokenizer


def _push(folder: Path, repository: str) -> None:
    """Uploads to the Hub, or to where HF_ENDPOINT points."""
    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload RADD model")


# ---------------------------------------------------------------------------------------------------------
# Target: complete or absent
# ---------------------------------------------------------------------------------------------------------


def _free_target(target: str | Path) -> Path:
    """Returns the absolute path of the target. Call it before a model is read."""
    target = Path(target).resolve()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"target={str(target)!r} exists and is not an empty folder; name a new folder.")
    return target


@contextmanager
def _complete_or_absent(target: Path) -> Iterator[Path]:
    """Yields a folder to write into. At the end it gets the target's name; after an error it is deleted.

    It lies beside the target, because a rename is a single step only within one file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        if target.is_dir():
            target.rmdir()  # empty, or this fails
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# ---------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="radd convert", description=(__doc__ or "").split("\n")[0])
    parser.usage = "radd convert SOURCE TARGET [options]"
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a model that the authors released, a training run of theirs or its .pth file, or a radd_hf model",
    )
    parser.add_argument("target", metavar="TARGET", help="folder to make")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="name or folder of the tokenizer to put beside the model (default: the one in SOURCE if it is a folder)",
    )
    parser.add_argument("--no-ema", action="store_true", help="take the raw weights of a training run, not the average")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: that of SOURCE)")
    parser.add_argument("--license", metavar="ID", help="license of the weights for the model card, such as apache-2.0")
    parser.add_argument(
        "--card", metavar="FILE", help="an earlier model card; keep its title and the sections that people wrote"
    )
    parser.add_argument(
        "--endpoint", action="store_true", help="also write handler.py and requirements.txt for an inference endpoint"
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="repository to upload the folder to")
    parser.add_argument("--to-original", action="store_true", help="write the authors' layout instead of ours")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def main(argv: list[str]) -> None:
    """Runs [`convert`] or [`to_original`] by the arguments of a command line."""
    parser = make_parser()
    args = parser.parse_args(argv)
    ours = [f"--{name}" for name in ("tokenizer", "license", "card", "endpoint") if getattr(args, name)]
    if args.to_original and ours:
        parser.error(f"{', '.join(ours)}: the authors' layout (--to-original) has no place for it; leave it out.")

    options = {"use_ema": not args.no_ema, "dtype": args.dtype, "push_to_hub": args.push_to_hub}
    if args.to_original:
        to_original(args.source, args.target, **options)
    else:
        beside = {name: getattr(args, name) for name in ("tokenizer", "license", "card", "endpoint")}
        convert(args.source, args.target, **beside, **options)
    print(f"{visible(args.target)} is written.")
    if not args.to_original and not (Path(args.target) / "tokenizer_config.json").is_file():
        print("The folder has no tokenizer. Pass --tokenizer NAME_OR_DIR to put one there.")


if __name__ == "__main__":
    run_program(main, "radd convert")
