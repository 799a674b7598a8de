"""A job of the workflow: a command that ends with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from bluelib.cli.job import WORKFLOW

JOB = [sys.executable, "-m", "bluelib.cli.job"]


@pytest.fixture
def workflow():
    """A process that stands in for the workflow."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_job_does_what_its_command_does(workflow):
    for environment in ({}, {WORKFLOW: str(workflow.pid)}):
        done = subprocess.run(
            [*JOB, "models"], env={**os.environ, **environment}, capture_output=True, text=True, check=True
        )
        assert "pocket-llama" in done.stdout and not done.stderr


def test_a_job_whose_workflow_is_gone_does_not_begin(workflow):
    workflow.kill()
    workflow.wait()
    done = subprocess.run(
        [*JOB, "models"],
        env={**os.environ, WORKFLOW: str(workflow.pid)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == f"blue: the workflow that started this job, process {workflow.pid}, is gone\n"


@pytest.mark.slow
def test_a_job_at_work_ends_with_its_workflow(workflow, tmp_path):
    """Nobody has fetched the dead workflow's status then: its number is still taken."""
    manifest = tmp_path / "run" / "manifest.json"
    command = "edit --model pocket-llama --dataset pocket-zsre --editor ft --edits 200 --batch-size 1 --no-generate"
    job = subprocess.Popen(
        [*JOB, *command.split(), "--checkpoint", str(manifest.parent)],
        env={**os.environ, WORKFLOW: str(workflow.pid)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not manifest.exists():
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.05)
        workflow.kill()
        job.communicate(timeout=10)
    finally:
        job.kill()
    assert job.returncode == -signal.SIGKILL
