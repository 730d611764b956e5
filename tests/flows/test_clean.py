"""`make clean` frees what kills and older settings have left, and nothing that a run would look for or works on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import called

FREED = """
    data/.images.parquet.{gone}.tmp data/latents/.24.{gone}.old.tmp/x .scratch/.pixels-abc.{gone}.tmp
    .scratch/unpacked/0123456789abcdef/a.png .scratch/ray/0011/x .scratch/hub/models--someone--other/x
    .scratch/downloads/fedcba9876543210-old.zip .scratch/checkpoints/msf-0-0001/000.safetensors
    .scratch/sweeps/dit-0001/records/a.json .scratch/sweeps/forgotten-0001/records/a.json
    .dvc/cache/files/md5/00/.Zm9v-YmFy.tmp .dvc/tmp/.rwlock.{gone}.tmp
"""
KEPT = """
    data/.images.parquet.{alive}.tmp data/images.parquet models/vae/x samples/dit/x data/raw/mine/.notes.{gone}.tmp
    .scratch/shards/latents-24/0001/00000.safetensors
    .scratch/hub/models--someone--model/x
    .scratch/downloads/0123456789abcdef-set.zip .scratch/checkpoints/msf-0-0002/000.safetensors
    .scratch/checkpoints/msf-1-0001/000.safetensors .scratch/sweeps/dit-0002/records/a.json .scratch/logs/run.log
    .scratch/seconds.json .dvc/cache/files/md5/00/0123 .scratch/previews/dit/latest.png
"""


@pytest.fixture
def littered(pipeline) -> tuple[set[Path], set[Path]]:
    """What is to be freed, and what is not, older first."""
    pipeline.write("a: {cmd: echo a > a, outs: [a]}")
    (pipeline.folder / "params/sweeps").mkdir(parents=True)
    (pipeline.folder / "params/sweeps/dit.yaml").write_text("method: dit")
    Path("params.yaml").write_text("sha256: 0123456789abcdef0123\nsource: someone/model")
    with subprocess.Popen(["true"]) as ended:
        pass
    numbers = {"gone": ended.pid, "alive": os.getppid()}
    freed, kept = ({Path(path) for path in text.format(**numbers).split()} for text in (FREED, KEPT))
    for age, path in enumerate([*sorted(freed), *sorted(kept)]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("12345")
        # What a sweep writes is in the folders of its own: it leaves the time of that one as it was.
        for each, when in ((path, age), (path.parent, age), (path.parents[1], -age)):
            os.utime(each, (when, when))
    return freed, kept


def test_what_nothing_refers_to_is_shown_and_freed_and_the_rest_stays(littered):
    freed, kept = littered
    done = called("flows.clean")
    assert done.returncode == 0, done.stderr
    assert not [path for path in freed if path.exists()] and not [path for path in kept if not path.exists()]
    shown = [line.split("MB  ")[1] for line in done.stdout.splitlines()[:-1]]
    assert len(shown) == len(freed) and all(any(path.is_relative_to(each) for each in shown) for path in freed)
    assert called("flows.clean").stdout == "       0.0 MB freed\n"


def test_nothing_is_freed_while_something_works_here(littered):
    freed, _ = littered
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", "-m stages.train"]) as work:
        done = called("flows.clean")
        work.kill()
    assert done.returncode == 2 and done.stdout == "" and f"is at work here ({work.pid})" in done.stderr
    assert all(path.exists() for path in freed)
