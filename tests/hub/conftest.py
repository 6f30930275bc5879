"""What tests of conversion start from."""

import shutil
from pathlib import Path

import pytest

from support.paths import GOLDEN


@pytest.fixture
def run(tmp_path) -> Path:
    """A training run of the authors' that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "run", tmp_path / "sources" / "a-run"))


@pytest.fixture
def hub(tmp_path) -> Path:
    """A released folder that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "hub", tmp_path / "sources" / "a-release"))
