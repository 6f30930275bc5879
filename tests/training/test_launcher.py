# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What the launcher and a configuration file are asked for reaches the scripts, or is refused."""

from types import SimpleNamespace

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DynamoBackend
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from radd_hf.evaluation import perplexity, samples
from radd_hf.processes import make_accelerator
from radd_hf.training.sharding import prepare_deepspeed
from radd_hf.training.train import parse_arguments

SCRIPTS = {
    "train": lambda *flags: parse_arguments([*flags])[2],
    "eval": lambda *flags: perplexity.parse_arguments(["--model", "m", *flags]),
    "quality": lambda *flags: samples.parse_arguments(["--model", "m", *flags])[0],
}
each_script = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables that `accelerate launch` with these flags gives a script."""

    def launch(*flags: str) -> None:
        args = launch_command_parser().parse_args(["--cpu", "--num_processes", "1", *flags, "train_accelerate.py"])
        _, variables = prepare_simple_launcher_cmd_env(_validate_launch_command(args)[0])
        for name, value in variables.items():
            if name.startswith("ACCELERATE_"):
                monkeypatch.setenv(name, value)

    return launch


@each_script
def test_a_script_takes_the_launchers_precision(launched, script):
    launched("--mixed_precision", "bf16")
    assert SCRIPTS[script]().mixed_precision == "bf16"
    assert SCRIPTS[script]("--mixed_precision", "bf16").mixed_precision == "bf16"
    for other in ("no", "fp16"):
        with pytest.raises(ValueError, match=f"mixed_precision='{other}' must be 'bf16', which the launcher was asked"):
            SCRIPTS[script]("--mixed_precision", other)


@each_script
def test_a_launcher_that_was_asked_for_nothing_leaves_the_precision_to_the_script(launched, script):
    launched()
    assert SCRIPTS[script]().mixed_precision == "no"
    assert SCRIPTS[script]("--mixed_precision", "fp16").mixed_precision == "fp16"


@each_script
def test_a_precision_that_the_scripts_do_not_have_is_refused(script, monkeypatch):
    with pytest.raises(ValueError, match=r"mixed_precision='half' must be one of \('no', 'bf16', 'fp16'\)"):
        SCRIPTS[script]("--mixed_precision", "half")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="mixed_precision='fp8' must be one of"):
        SCRIPTS[script]()


def test_fp16_is_refused_on_a_processor_which_would_leave_it_out():
    with pytest.raises(ValueError, match="mixed_precision='fp16' needs a GPU"):
        make_accelerator(mixed_precision="fp16")


def test_training_compiles_as_the_launcher_is_asked_and_accelerate_does_not(launched):
    launched("--dynamo_backend", "aot_eager")
    args = parse_arguments([])[2]
    assert (args.compile, args.compile_backend) == (True, "aot_eager")
    assert make_accelerator().state.dynamo_plugin.backend == DynamoBackend.NO
    with pytest.raises(ValueError, match="compile=False contradicts the launcher, which was asked for aot_eager"):
        parse_arguments(["--compile", "false"])
    with pytest.raises(ValueError, match="compile_backend='eager' must be 'aot_eager', which the launcher"):
        parse_arguments(["--compile_backend", "eager"])
    launched("--dynamo_backend", "inductor", "--dynamo_mode", "max-autotune")
    with pytest.raises(ValueError, match="ACCELERATE_DYNAMO_MODE=max-autotune of the launcher must be default"):
        parse_arguments([])
    launched()
    assert parse_arguments([])[2].compile is None


@pytest.mark.parametrize(
    ("name", "variable", "asked", "other", "default"),
    [
        ("accumulation", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 4, 1, 1),
        ("max_grad_norm", "ACCELERATE_GRADIENT_CLIPPING", 0.5, 1.0, 1.0),
    ],
)
def test_training_takes_what_the_launcher_says_of_gradients(monkeypatch, name, variable, asked, other, default):
    assert getattr(parse_arguments([])[2], name) == default
    monkeypatch.setenv(variable, str(asked))
    assert getattr(parse_arguments([])[2], name) == asked
    assert getattr(parse_arguments([f"--{name}", str(asked)])[2], name) == asked
    with pytest.raises(ValueError, match=rf"{name}={other} must be {asked}, which the launcher was asked for"):
        parse_arguments([f"--{name}", str(other)])
    monkeypatch.setenv(variable, "auto")
    assert getattr(parse_arguments([f"--{name}", "3"])[2], name) == 3
    monkeypatch.setenv(variable, "many")
    with pytest.raises(ValueError, match=rf"{variable}='many' of the launcher is not a valid {name}"):
        parse_arguments([])


def test_accumulation_is_the_scripts_where_the_launcher_says_one(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    args = parse_arguments(["--accumulation", "4"])[2]
    assert make_accelerator(accumulation=args.accumulation).gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"gradient_accumulation_steps": 8},
            "gradient_accumulation_steps=8 .* must be 'auto', or 2 to match accumulation",
        ),
        ({"gradient_clipping": 0.5}, r"gradient_clipping=0\.5 .* must be 'auto', or 1\.0 to match max_grad_norm"),
        (
            {"train_micro_batch_size_per_gpu": 3},
            "train_micro_batch_size_per_gpu=3 .* must be 'auto', or 4 to match batch_size",
        ),
        ({"train_batch_size": 64}, "train_batch_size=64 .* must be 'auto', or 16 to match batch_size"),
        ({"gradient_accumulation_steps": "auto", "gradient_clipping": 1.0, "train_batch_size": 16}, None),
        ({"gradient_accumulation_steps": 1}, None),  # what Accelerate writes where the file says nothing
    ],
)
def test_deepspeeds_own_configuration_must_agree(said, message):
    plugin = SimpleNamespace(zero_stage=2, deepspeed_config=dict(said))
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), mixed_precision="no", num_processes=2)
    if message is None:
        prepare_deepspeed(accelerator, 4, 2, 1.0, "bf16")
        assert plugin.deepspeed_config["gradient_accumulation_steps"] == 2
        return
    with pytest.raises(ValueError, match=message):
        prepare_deepspeed(accelerator, 4, 2, 1.0, "bf16")


# ---------------------------------------------------------------------------------------------------------
# Configuration files
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(tmp_path):
    def arguments_of(text: str):
        (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
        return parse_arguments(["--config", str(tmp_path / "my.yaml")])

    return arguments_of


def test_a_bare_no_of_yaml_is_no_precision(configured):
    assert configured("mixed_precision: no")[2].mixed_precision == "no"


def test_numbers_are_read_however_yaml_writes_them(configured):
    _, data_args, args = configured("learning_rate: 1e-4\nmax_steps: 2e3\nheld_out: 3\nseed: 4294967295")
    assert (args.learning_rate, args.max_steps, data_args.held_out, args.seed) == (1e-4, 2000, 3.0, 2**32 - 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixed_precision: yes", "mixed_precision=True must be text: put it in quotes"),
        ("judge: no", "judge=False must be text: put it in quotes"),
        ("dataset: 007", "dataset=7 must be text: put it in quotes"),
        ("tokenizer: [gpt2]", r"tokenizer=\['gpt2'\] must be text"),
        ("max_steps: 2.5", r"max_steps=2\.5 must be a whole number"),
        ("max_steps: many", "max_steps='many' must be a whole number"),
        ("batch_size: on", "batch_size=True must be a whole number"),
        ("weight_decay: no", "weight_decay=False must be a number"),
        ("learning_rate: 3e-4x", "learning_rate='3e-4x' must be a number"),
        ("streaming: 1", "streaming=1 must be true or false"),
        ("compile: 'true'", "compile='true' must be true or false"),
        ("learning_rat: 1", "unknown field learning_rat; did you mean learning_rate?"),
        ("{}: {}", "is not YAML"),
        ("seed: [", "is not YAML"),
    ],
)
def test_a_field_of_another_type_is_refused_with_file_and_field(configured, text, message):
    with pytest.raises(ValueError, match=rf"config=.*my\.yaml:? .*{message}"):
        configured(text)
