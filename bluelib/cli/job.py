"""A job of the workflow: ``python -m bluelib.cli.job …`` does what ``blue …`` does, and ends when the workflow ends."""

from __future__ import annotations

import os
import sys
import threading
import time

import psutil

from . import main

#: In a job's environment, the process of the workflow that started it.
WORKFLOW = "BLUELIB_WORKFLOW_PID"


def end_with_workflow() -> None:
    """End this process, and those it started, when the workflow that started it is gone. A job that continued alone
    would write at the same time as the same job of the next run. Outside a workflow, this does nothing.

    Raises:
        SystemExit: if the workflow is gone already.
    """
    if WORKFLOW not in os.environ:
        return
    try:
        workflow = psutil.Process(int(os.environ[WORKFLOW]))
    except psutil.NoSuchProcess:
        sys.exit(f"blue: the workflow that started this job, process {os.environ[WORKFLOW]}, is gone")

    def watch() -> None:
        while _alive(workflow):
            time.sleep(0.5)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        psutil.Process().kill()

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: psutil.Process) -> bool:
    """Whether a process still runs; another process with its number does not count, nor does a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    end_with_workflow()
    sys.exit(main())
