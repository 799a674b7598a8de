"""How long a notebook takes from the start of its kernel to its last cell, and the most memory that its kernel held.

    python -m benchmarks.quickstart                                    # notebooks/00_quickstart.ipynb, one run
    binder/start python -m benchmarks.quickstart --runs 3              # with the threads that Binder gives it
    python -m benchmarks.quickstart notebooks/02_locate.ipynb

Each run has a kernel of its own, of the environment that this is started with, in a temporary folder with copies of
``results`` and ``figures``, which notebooks read, so that what they write stays out of the checkout. All runs share one
cache: the first finds it empty, as on a machine that has never run bluelib, and measures second moments; the others
find them there. Memory is the peak resident set of the kernel's process (``VmHWM`` of /proc, so Linux only). A Jupyter
server needs memory of its own beside it, which ``--server`` measures too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Run:
    """One run of a notebook: seconds from before its kernel is started to after its last cell, and until that kernel
    was ready; and the kernel's peak resident memory in MB (10⁶ bytes)."""

    seconds: float
    kernel_seconds: float
    memory_mb: float


def peak_mb(pid: int) -> float:
    """The most resident memory that a process has held so far, in MB (10⁶ bytes).

    Of its own alone: unlike ``ru_maxrss``, it doesn't begin with what the process that started it held.
    """
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(kib) * 1024 / 1e6


def run_notebook(path: Path, folder: Path) -> Run:
    """Run every cell of a notebook in ``folder`` with a new kernel of this environment.

    Raises:
        CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=None, resources={"metadata": {"path": str(folder)}}
    )
    began = time.perf_counter()
    with client.setup_kernel():
        ready = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        ended = time.perf_counter()
        memory = peak_mb(client.km.provisioner.pid)
    return Run(ended - began, ready - began, memory)


def server_mb(folder: Path) -> float:
    """The most resident memory in MB of a Jupyter server, once it has delivered JupyterLab's first page."""
    token, port = "benchmark", 18888
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--allow-root",
    ]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/lab?token={token}") as page:
                    page.read()
                return peak_mb(server.pid)
            except urllib.error.URLError:
                time.sleep(0.2)
        raise RuntimeError(f"{' '.join(command)} ended with status {server.returncode}")
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path, nargs="?", default=ROOT / "notebooks" / "00_quickstart.ipynb")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--server", action="store_true", help="measure JupyterLab's server too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["BLUELIB_CACHE"] = str(Path(temporary, "cache"))
        for number in range(arguments.runs):
            folder = Path(temporary, str(number))
            for part in ("results", "figures"):
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("raw"))
            try:
                run = run_notebook(arguments.notebook, folder)
            except CellExecutionError as error:
                sys.exit(f"{arguments.notebook}: {error}")
            print(
                f"{arguments.notebook.name}, {'cache' if number else 'empty cache'}: {run.seconds:.1f} s, of which "
                f"{run.kernel_seconds:.1f} s until the kernel was ready; {run.memory_mb:.0f} MB in the kernel",
                flush=True,
            )
        if arguments.server:
            print(f"JupyterLab's server: {server_mb(Path(temporary)):.0f} MB")


if __name__ == "__main__":
    main()
