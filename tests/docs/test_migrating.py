"""docs/migrating.md: no name of the authors' repository is left out, and every name that it gives instead exists.

Their names are those of github ML-GSAI/RADD at 60b772d. A row of a table has theirs on the left and ours on the right;
the flags on the right are those of the script that the heading ends with.
"""

import functools
import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

import radd_hf
import radd_hf.app.cli
from radd_hf.evaluation import perplexity
from radd_hf.training import train
from support.paths import ROOT

PAGE = (ROOT / "docs" / "migrating.md").read_text()
SCRIPTS = """
    run_sample.py run_sample_cond.py run_train_ddp.py train_ddp.py evaluation_modeling.py load_model.py sampling.py
    catsample.py losses.py noise_lib.py data.py utils.py test.py environment.yml
    model/transformer.py model/rotary.py model/ema.py
    configs/config.yaml configs/model/small_radd.yaml configs/model/medium_radd.yaml
"""
FLAGS = """
    --model_path --batch_size --length --steps --method --strategy --strategy_para --prefix --suffix
    --cache_dir --monte_carlo_timesteps --ngpus --valid_dataset --work_dir --loss_type
"""
KEYS = """
    ngpus tokens gpt_dir outdir load_dir work_dir wandb_name
    training.batch_size training.accum training.n_iters training.snapshot_freq training.log_freq training.eval_freq
    training.snapshot_freq_for_preemption training.weight training.snapshot_sampling training.ema training.loss_type
    data.train data.valid data.cache_dir noise.type noise.sigma_min noise.sigma_max sampling.predictor sampling.steps
    eval.batch_size eval.perplexity eval.perplexity_batch_size
    optim.weight_decay optim.optimizer optim.lr optim.beta1 optim.beta2 optim.eps optim.warmup optim.grad_clip
    model.name model.type model.hidden_size model.cond_dim model.length model.n_blocks model.n_heads model.dropout
    model.use_checkpoint model.dtype hydra.run hydra.sweep hydra.launcher
"""
CLASSES = """
    RADD DDiTBlockWot LayerNormWot EmbeddingLayer DDitFinalLayerWot Rotary ExponentialMovingAverage
    Noise LogLinearNoise GeometricNoise Sampler DiffusionSampler OrderedSampler WrapperDDP
"""
FUNCTIONS = """
    load_model load_model_hf load_model_local get_noise add_noise_t add_noise_lambda add_noise_k Batch_Uniform_Sampler
    get_loss_fn get_optimizer optimization_manager get_step_fn get_update_rate direct_sample strateged_sample
    sample_with_strategy direct_sampling sample_categorical gumbel_softmax top_p_sampling top_k_sampling
    get_dataset get_dataloaders get_valid_dataloaders get_lambada_test_dataset cycle_loader
    wt_detokenizer ptb_detokenizer lm1b_detokenizer lambada_detokenizer rotate_half apply_rotary_pos_emb
    load_hydra_config_from_run save_checkpoint restore_checkpoint get_logger makedirs run_multiprocess cleanup
"""
THEIRS = [name for names in (SCRIPTS, FLAGS, KEYS, CLASSES, FUNCTIONS) for name in names.split()]


def rows() -> list[tuple[str, str, str]]:
    """(heading, there, here) of every row."""
    found, heading = [], ""
    for line in PAGE.split("\n"):
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("| ") and line != "| there | here |":
            found.append((heading, *(cell.strip() for cell in line.strip("|").split(" | "))))
    return found


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def exists(name: str, heading: str) -> bool:
    if name.startswith("--"):
        return name in flags_of(heading.split()[-1])
    if name.startswith("accelerate launch "):
        return name.split()[-1] in {
            flag for action in launch_command_parser()._actions for flag in action.option_strings
        }
    if name.startswith("generate("):
        return set(re.findall(r"(\w+)=", name)) <= set(inspect.signature(radd_hf.RaddForMaskedLM.generate).parameters)
    if name.startswith('"'):  # a value of `method` or `order`
        return name.strip('"') in (*radd_hf.settings_radd.METHODS, *radd_hf.settings_radd.ORDERS)
    if name.startswith("radd "):
        return name.removeprefix("radd ") in radd_hf.app.cli.COMMANDS
    if name == "HF_HOME":  # of huggingface_hub
        return True
    return (ROOT / name).is_file() or resolves(name)


@functools.cache
def flags_of(script: str) -> set[str]:
    arguments = {
        "train_accelerate.py": [
            train.ModelArguments,
            train.DataArguments,
            train.TrainingArguments,
        ],
        "eval_ppl.py": [perplexity.Arguments],
    }[script]
    return {f"--{field.name}" for each in arguments for field in fields(each)}


def resolves(name: str) -> bool:
    """Whether the dotted name is one of the package, of its rooms or of their modules."""
    found = radd_hf
    for part in name.split("."):
        if not hasattr(found, part):
            inside = Path(found.__file__).parent if hasattr(found, "__path__") else None
            if inside is None or not ((inside / f"{part}.py").is_file() or (inside / part).is_dir()):
                return False
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return True


def test_every_name_of_the_authors_repository_is_in_a_table():
    there = {name for _, cell, _ in rows() for name in names_in(cell)}
    assert [name for name in THEIRS if name not in there] == []


@pytest.mark.parametrize(("heading", "there", "here"), rows(), ids=[there for _, there, _ in rows()])
def test_what_a_row_gives_instead_exists(heading, there, here):
    assert [name for name in names_in(here) if not exists(name, heading)] == []
    assert names_in(here) or here.startswith("(") or here in ("AdamW", "the default")


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("--no_such", "to eval_ppl.py"),
        ("--accumulation", "to eval_ppl.py"),
        ("losses.no_such", ""),
        ("no_such.draw_masks", ""),
        ("generate(top_q=)", ""),
        ("RaddConfig.no_such", ""),
        ("no_such.py", ""),
        ('"gibbs"', ""),
        ("accelerate launch --no_such", ""),
        ("radd no_such", ""),
    ],
)
def test_a_name_that_does_not_exist_is_found(name, heading):
    assert not exists(name, heading)
