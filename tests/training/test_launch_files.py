"""The files in configs/accelerate: Accelerate reads them as they were meant.

The one for CPUs is run by test_end_to_end.py.
"""

import os

import pytest
import yaml
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType

from radd_hf import RaddForMaskedLM
from support.paths import ROOT

FILES = ROOT / "configs" / "accelerate"
# file: number of processes, machines, distributed type
EXPECTED = {
    "one_gpu": (1, 1, DistributedType.NO),
    "eight_gpus": (8, 1, DistributedType.MULTI_GPU),
    "two_nodes": (16, 2, DistributedType.MULTI_GPU),
    "fsdp2": (8, 1, DistributedType.FSDP),
    "deepspeed_zero2": (8, 1, DistributedType.DEEPSPEED),
    "two_cpus": (2, 1, DistributedType.MULTI_GPU),
}
TWO_NODES = ("--machine_rank", "1", "--main_process_ip", "10.0.0.1")


def launched(file, *flags):
    """The arguments `accelerate launch` would go on with, and the file as it has read it."""
    args = launch_command_parser().parse_args(["--config_file", str(file), *flags, "train_accelerate.py"])
    args, defaults, _ = _validate_launch_command(args)
    return args, defaults


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables with which the launcher would start the script."""

    def set_variables(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_every_file_is_expected():
    assert {path.stem for path in FILES.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_gives_its_processes_and_leaves_precision_to_the_script(name):
    args, defaults = launched(FILES / f"{name}.yaml")
    assert (args.num_processes, args.num_machines, defaults.distributed_type) == EXPECTED[name]
    ways = {"multi_gpu": args.multi_gpu, "use_fsdp": args.use_fsdp, "use_deepspeed": args.use_deepspeed}
    way = {"one_gpu": None, "fsdp2": "use_fsdp", "deepspeed_zero2": "use_deepspeed"}.get(name, "multi_gpu")
    assert ways == {other: other == way for other in ways}
    assert defaults.mixed_precision is None


@pytest.mark.parametrize("name", EXPECTED)
def test_no_key_of_a_file_is_without_effect(name):
    """Accelerate ignores a key, same_network for one, if the flag of that name has a default of its own."""
    args, _ = launched(FILES / f"{name}.yaml")
    fields = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    flat = {key: value for key, value in fields.items() if key not in ("compute_environment", "distributed_type")}
    for section in [value for value in flat.values() if isinstance(value, dict)]:
        flat |= section
    flat = {key: value for key, value in flat.items() if not isinstance(value, dict)}
    assert flat == {key: getattr(args, key) for key in flat}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_misspelt_key_is_refused_and_no_section_holds_one(name, tmp_path):
    fields = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(yaml.safe_dump(fields | {"num_procesess": 2}))
    with pytest.raises(ValueError, match=r"unknown keys \(\['num_procesess'\]\)"):
        load_config_from_file(str(misspelt))
    known = vars(launch_command_parser().parse_args(["train_accelerate.py"]))
    for section in (value for value in fields.values() if isinstance(value, dict)):
        assert set(section) <= set(known)  # Accelerate itself would take any key here and forget it


def test_the_second_machine_learns_its_rank_and_the_address_of_the_first():
    args, _ = launched(FILES / "two_nodes.yaml", *TWO_NODES)
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:29500")


def test_fsdp_is_version_2_around_each_layer(environment):
    args, _ = launched(FILES / "fsdp2.yaml", "--main_process_port", "0")
    environment(prepare_multi_gpu_env(args))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap == ["RaddLayer"]
    assert set(plugin.transformer_cls_names_to_wrap) <= set(RaddForMaskedLM._no_split_modules)
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing


def test_deepspeed_is_stage_2_with_float32_weights_whatever_the_script_asks(environment):
    args, defaults = launched(FILES / "deepspeed_zero2.yaml", "--main_process_port", "0")
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    environment(prepare_deepspeed_cmd_env(args)[1])
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    assert plugin.zero_stage == 2
    settings = plugin.deepspeed_config
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert not settings["bf16"]["enabled"]
    assert not settings["fp16"]["enabled"]
    assert settings["gradient_accumulation_steps"] == settings["gradient_clipping"] == "auto"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ  # Accelerator() takes int() of it
