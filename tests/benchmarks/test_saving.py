"""What a save costs is measured by saves as training makes them."""

import re

from benchmarks import saving


def test_a_save_and_its_parts_are_timed(tmp_path, capsys):
    saving.main(["--folder", str(tmp_path), "--repeats", "1", "--hidden_size", "24", "--num_hidden_layers", "1"])
    printed = capsys.readouterr().out
    for name in saving.PARTS:
        assert re.search(rf"^{name} +\d+\.\d\d s$", printed, re.MULTILINE)
    assert re.search(r"^a save +\d+\.\d\d s, \d+\.\d\d times as long as writing alone$", printed, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
