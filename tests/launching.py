"""How tests start the scripts in processes of their own."""

import os
import socket
import sys

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(processes: int, *script: str) -> list[str]:
    if processes == 1:
        return [sys.executable, *script]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return [sys.executable, *launcher, *script]
