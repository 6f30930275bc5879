# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""`radd completion`: what a shell offers with the script that it prints."""

import shutil
import subprocess
import sys

import pytest

from radd_hf.app import cli
from radd_hf.app.completion import completion_script

# Completes the last of the words as bash does after a press of the tab key.
PRESS_TAB = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
read -r -a specification <<< "$(complete -p radd)"
for place in "${!specification[@]}"; do
    [[ ${specification[place]} == -F ]] && complete_radd=${specification[place + 1]}
done
"$complete_radd" radd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    pytest.importorskip("shtab", reason="needs shtab (the extra `completion`)")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "radd.bash").write_text(completion_script("bash", cli.PARSERS), encoding="utf-8")
    (folder / "text.txt").touch()

    def press_tab(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", PRESS_TAB, "bash", "radd.bash", "radd", *words],
            capture_output=True,
            text=True,
            cwd=folder,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return press_tab


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ge"], ["generate"]),
        (["pro"], ["profile"]),
        (["generate", "m", "--temp"], ["--temperature"]),
        (["generate", "m", "--method", "tw"], ["tweedie"]),
        (["generate", "m", "--order", "ra"], ["random"]),
        (["generate", "m", "--batch-s"], ["--batch-size"]),
        (["train", "--learning"], ["--learning_rate"]),
        (["train", "--loss_type", "t_D"], ["t_DSE", "t_DCE"]),
        (["train", "--conf"], ["--config"]),
        (["eval", "--estimator", "ar_b"], ["ar_backward"]),
        (["quality", "--n_s"], ["--n_samples"]),
        (["convert", "a", "b", "--dtype", "bf"], ["bfloat16"]),
        (["generate", "tex"], ["text.txt"]),
        (["eval", "--output", "tex"], ["text.txt"]),
        (["completion", "b"], ["bash"]),
    ],
)
def test_bash_completes_commands_options_choices_and_files(offered, words, found):
    assert offered(*words) == found


def test_every_command_is_offered(offered):
    assert set(cli.COMMANDS) <= set(offered(""))
    assert cli.PARSERS.keys() == cli.COMMANDS.keys()


def test_zsh_gets_every_command_and_option():
    pytest.importorskip("shtab", reason="needs shtab (the extra `completion`)")
    script = completion_script("zsh", cli.PARSERS)
    assert script.startswith("#compdef radd\n")
    assert '"--learning_rate[' in script
    assert ":method:(tweedie euler first_hitting ordered)" in script
    assert all(f"{name}:" in script for name in cli.COMMANDS)


def test_without_shtab_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert capsys.readouterr().err == "radd: error: completion needs shtab: pip install 'radd_hf[completion]'\n"


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", "bush"])
    assert ended.value.code == 2
    assert "invalid choice: 'bush'; did you mean bash?" in capsys.readouterr().err
