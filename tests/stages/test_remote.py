"""Results are shared through a DVC remote: pushed from one clone and pulled into another, over S3."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

ACCESS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def endpoint(monkeypatch):
    """An S3 server on this machine with one bucket."""
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="results")
    yield f"http://{host}:{port}"
    server.stop()


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_what_one_clone_pushes_another_pulls_and_need_not_run(sources, tmp_path, endpoint):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(sources, first)
    run(first, "git", "init", "-q")
    run(first, "dvc", "init", "-q")
    run(first, "dvc", "remote", "add", "--default", "results", "s3://results/dvc")
    run(first, "dvc", "remote", "modify", "results", "endpointurl", endpoint)
    run(first, "dvc", "repro", "-q", "download")
    run(first, "dvc", "push", "-q", "code", "download")
    run(first, "git", "add", "-A")
    run(first, "git", "-c", "user.name=tests", "-c", "user.email=tests@example.org", "commit", "-qm", "state")

    run(tmp_path, "git", "clone", "-q", str(first), str(second))
    run(second, "dvc", "pull", "-q", "code", "download")
    images = Path("data/images.parquet")
    assert (second / images).read_bytes() == (first / images).read_bytes()
    assert "Running stage" not in run(second, "dvc", "repro", "download")
