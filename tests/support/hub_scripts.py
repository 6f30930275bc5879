# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs scripts in separate processes, which see no other Hub than the stand-in."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.hub_stand_in import HubStandIn
from support.paths import ROOT

LOOPBACK_ONLY = """
import json, sys

def guard(event, arguments):
    host = "127.0.0.1"
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):  # not a socket in the file system
        host = arguments[1][0]
    if host not in ("127.0.0.1", "::1"):
        raise RuntimeError(f"a test may not reach for {host}")

sys.addaudithook(guard)
"""

OWNER = f"sys.path.insert(0, {str(ROOT)!r})\n"  # this radd_hf, installed or not


def run_script(script: str, *arguments, hub: HubStandIn, home: Path, **variables) -> dict:
    """Returns the last line that a script printed. Its process sees only the stand-in and the cache in `home`."""
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "error:::radd_hf", "-W", "error:::transformers_modules"]
    finished = subprocess.run(
        [*command, "-c", LOOPBACK_ONLY + script, *map(str, arguments)],
        env=environment | variables,
        stdin=subprocess.DEVNULL,  # transformers must not wait for an answer to a question
        capture_output=True,
        text=True,
        cwd=home,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])
