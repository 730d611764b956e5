"""The stages on a real Ray cluster of several nodes: the same results whoever dies, one line where it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, Project
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flows.cluster import slots
from flows.flow import reproduce
from stages.common import cluster, shards
from stages.common.errors import BadInput
from stages.common.paths import IMAGES, PIXELS, PREVIEWS, SAMPLES, SCRATCH, VAE
from stages.schema.data import Run

LONG = {  # a training of forty steps, with a checkpoint after each
    "parts.msf-1.training.images": 640,
    "parts.msf-1.training.log_images": 160,
    "run.checkpoint_seconds": 0,
    "parts.msf-1.training.precision": "fp32",
}
QUICK = {  # Ray sees at once that something has died; by default it looks every 2 to 3 seconds and waits 30 for a group
    "RAY_health_check_period_ms": "500",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1",
}


# Where a stage finds its cluster, and how much a worker gives way.
TELL = """
import os, ray, sys
ray.init(log_to_driver=False)
niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
open(sys.argv[1], "w").write(f"{os.environ['RAY_ADDRESS']} {niceness}")
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster of a head without cores and two nodes of two cores each; RAY_ADDRESS leads there."""
    before = dict(os.environ)
    os.environ |= QUICK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_worker_niceness"] = "0"  # or they wait for the tests beside these
    folders = (Path(__file__).parent, ROOT / "tests")  # what a test sends to a worker is found there
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    for _ in range(2):
        nodes.add_node(num_cpus=2, object_store_memory=10**8)
    os.environ["RAY_ADDRESS"] = nodes.address
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def spread(trained, working_copy) -> Project:
    """A copy of the trained project; it is the working directory."""
    return Project(working_copy(trained))


def workers_in(folder: Path) -> list[int]:
    """The processes that train in a folder: Ray names them after their class."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                trains = (entry / "cmdline").read_text().startswith("ray::RayTrainWorker")
                found += [int(entry.name)] if trains and (entry / "cwd").resolve() == folder.resolve() else []
            except OSError:
                continue  # it has ended
    return found


def parent_of(process: int) -> int:
    return int(Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[1])


def start(stage: str, project: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", *f"stages.{stage}".split()]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def seen_by(child: subprocess.Popen, folder: Path, least: int) -> int:
    """Waits until a checkpoint holds at least so many images; gives how many."""
    while True:
        assert child.poll() is None, child.stderr.read()
        newest = max((int(path.stem) for path in folder.glob(".scratch/checkpoints/*/[0-9]*.safetensors")), default=-1)
        if newest >= least:
            return newest
        time.sleep(0.05)


def test_the_stages_of_a_flow_share_the_cluster_that_it_starts(spread, server, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_worker_niceness"):
        monkeypatch.delenv(name, raising=False)
    spread.change({"run.workers": 1})
    Path("tell.py").write_text(TELL)
    stages = {name: {"cmd": f"python tell.py {name}", "outs": [name]} for name in ("a", "b")}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    for command in ("git init -q", "git add -A", "git commit -qm all", "dvc init -q"):
        subprocess.run(command.split(), check=True)
    path = os.pathsep.join([str(spread.folder), str(ROOT)])
    done = spread.run("-m", "flows.reproduce", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, PYTHONPATH=path)
    assert done.returncode == 0 and "2 stages ran" in done.stdout, done.stderr
    assert Path("a").read_text() == Path("b").read_text()
    address, niceness = Path("a").read_text().split()
    assert address and int(niceness) == os.nice(0), "a worker gives way to other programs"
    assert not [each for each in psutil.process_iter() if each.name() == "raylet" and each.ppid() == 1]


@pytest.mark.parametrize("device, workers, at_once", [("cuda", 0, 1), ("cuda", 2, 4), ("cpu", 0, 4), ("cpu", 2, 4)])
def test_stages_that_ask_for_nothing_never_share_a_gpu(monkeypatch, device, workers, at_once):
    monkeypatch.setattr("flows.cluster.default_device", lambda: torch.device(device))
    assert slots(Run(workers=workers), 4) == at_once


@pytest.mark.parametrize("cores, threads, at_once", [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_by_default_as_many_stages_run_as_there_are_cores_for(monkeypatch, cores, threads, at_once):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert slots(Run(threads=threads), None) == at_once


def test_a_flow_on_a_gpu_without_workers_runs_one_stage_at_a_time(spread, server, monkeypatch):
    stages = {name: {"cmd": f"mkdir busy && sleep 2 && rmdir busy && echo > {name}", "outs": [name]} for name in "ab"}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    for command in ("git init -q", "dvc init -q"):
        subprocess.run(command.split(), check=True)
    monkeypatch.setattr("flows.cluster.default_device", lambda: torch.device("cuda"))
    state = reproduce(slots=2, return_state=True)
    assert state.is_completed() and state.message.startswith("2 stages ran"), state.message


def test_training_survives_a_killed_worker_and_a_killed_node_to_the_same_bytes(nodes, spread, tmp_path):
    spread.change(LONG | {"run.workers": 2, "run.tracker": "tensorboard"})
    quiet = tmp_path / "quiet"
    shutil.copytree(spread.folder, quiet)
    child = start("train msf-1", spread.folder)
    seen_by(child, spread.folder, 16)
    first = workers_in(spread.folder)
    os.kill(first[0], signal.SIGKILL)
    while not (second := set(workers_in(spread.folder)) - set(first)):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    seen = seen_by(child, spread.folder, 0)
    seen_by(child, spread.folder, seen + 16)
    node = parent_of(min(second))
    for process in [node, *(worker for worker in second if parent_of(worker) == node)]:  # all that a node takes along
        os.kill(process, signal.SIGKILL)
    _, said = child.communicate()
    assert child.returncode == 0, said
    assert said.count("lost a worker") >= 2 and "going on from the last checkpoint" in said
    assert "train msf-1: 100%" in said, "there is a bar"
    assert json.loads((spread.folder / "reports/timing/msf-1.json").read_text())["workers"] == 2

    with start("train msf-1", quiet) as child:
        _, said = child.communicate()
        assert child.returncode == 0 and "lost" not in said, said
    results = [
        {path.name: path.read_bytes() for path in (folder / "models/msf/msf-1").rglob("*") if path.is_file()}
        for folder in (spread.folder, quiet)
    ]
    assert results[0] == results[1]
    assert (quiet / PREVIEWS / "msf-1/100.png").exists(), "the first worker draws"
    runs = [list((folder / SCRATCH / "tensorboard/msf-1").iterdir()) for folder in (spread.folder, quiet)]
    assert [len(found) for found in runs] == [1, 1], "a training is one run, whoever dies"
    assert len(list(runs[1][0].iterdir())) == 1, "the first worker alone tells the tracker"
    together = [json.loads(row) for row in results[0]["history.jsonl"].decode().splitlines()]
    for (found,) in runs:
        events = EventAccumulator(str(found)).Reload().Scalars("loss")
        assert [each.step for each in events] == [row["images"] for row in together if "loss" in row]

    spread.change({"run.workers": 0})
    assert spread.stage("train", "msf-1").returncode == 0
    alone = [json.loads(row) for row in Path("models/msf/msf-1/history.jsonl").read_text().splitlines()]
    assert [row["images"] for row in together] == [row["images"] for row in alone]
    # The same batches and numbers, summed in another order.
    for name in ("loss", "validation_loss"):
        wanted = [row[name] for row in alone if name in row]
        assert [row[name] for row in together if name in row] == pytest.approx(wanted, rel=1e-3) and wanted


def test_a_model_on_latents_decodes_them_without_the_autoencoders_stage(spread, trained):
    shutil.rmtree(VAE)
    assert spread.stage("sample", "msf").returncode == 0
    images = SAMPLES / "msf" / "images.safetensors"
    assert images.read_bytes() == (trained / images).read_bytes()


def test_stages_on_workers_leave_the_same_bytes(nodes, spread, trained):
    spread.change({"run.workers": 2})
    wanted = ["data/latents/24", "samples/msf", "reports/measurements/msf.json"]
    for path in wanted[:2]:
        shutil.rmtree(path)
    Path(wanted[2]).unlink()
    for stage in ("latents 24", "sample msf", "evaluate msf"):
        done = spread.stage(*stage.split())
        assert done.returncode == 0, f"{stage}\n{done.stderr}"
    for path in wanted:
        for file in [*(trained / path).rglob("*.*")] or [trained / path]:
            assert Path(file.relative_to(trained)).read_bytes() == file.read_bytes(), file


def test_images_are_decoded_to_the_same_bytes_by_any_number_of_workers(nodes, spread, monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 700)  # of 5,000 digits, in two splits
    found = []
    for workers in (0, 1, 2):
        spread.change({"run.workers": workers})
        shutil.rmtree(PIXELS)
        done = spread.stage("download")
        assert done.returncode == 0, done.stderr
        files = [IMAGES, *(path for path in PIXELS.rglob("*") if path.is_file())]
        found.append({path: path.read_bytes() for path in files})
    assert found[0] == found[1] == found[2] and len(found[0]) > 8


class Numbers:
    """Doubles numbers; at one of them its process dies, once."""

    def double(self, number: int, marker: str | None = None) -> int:
        if marker and not os.path.exists(marker):
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3 if number % 3 == 0 else 0)
        return 2 * number

    def threads(self) -> tuple[int, str | None]:
        return torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY")

    def gpus(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def refuse(self) -> None:
        raise BadInput("a line")


def test_images_of_a_teacher_are_the_same_bytes_from_workers(nodes, spread):
    about = {"kind": "swd", "teacher": "dit", "dataset": "pyramid", "images": 20, "batch": 8, "solver": {"steps": 1}}
    spread.change({"synthetic.made": about})
    found = []
    for stage in ("latents 16", "decompose pyramid", "synthetic made", "synthetic made"):
        done = spread.stage(*stage.split())
        assert done.returncode == 0, f"{stage}\n{done.stderr}"
        if stage == "synthetic made":
            files = [path for path in Path("data/decomposed/made").rglob("*") if path.is_file()]
            found.append({path.name: path.read_bytes() for path in files})
            shutil.rmtree("data/decomposed/made")
            spread.change({"run.workers": 2})
    assert found[0] == found[1] and {"targets.safetensors", "data.safetensors", "images.json"} <= found[0].keys()


def test_a_pool_keeps_the_order_replaces_a_killed_worker_and_hands_on_what_is_refused(nodes, spread, tmp_path):
    run = Run(workers=2)
    with cluster.pool("numbers", run, Numbers) as workers:
        items = [(number, str(tmp_path / "died") if number == 5 else None) for number in range(12)]
        assert list(workers.map("double", items)) == [2 * number for number in range(12)]
        assert (tmp_path / "died").exists()
        with pytest.raises(BadInput, match="^a line$"):
            list(workers.map("refuse", [()]))


def test_a_worker_that_asks_for_no_gpu_sees_none(nodes):
    with cluster.pool("numbers", Run(workers=1, gpus=0), Numbers) as workers:
        assert list(workers.map("gpus", [()])) == [""], "without the variable it would see all"


def test_a_worker_computes_with_the_threads_of_its_pool(nodes):
    policy = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    for threads in (1, 2):  # the first pool decides the environment of all workers
        with cluster.pool("numbers", Run(workers=1, threads=threads), Numbers) as workers:
            assert list(workers.map("threads", [()])) == [(threads, policy)]


def test_a_stage_waits_for_its_turn_and_says_so(nodes, spread, capfd):
    import ray

    run = Run(workers=1, threads=2)
    with cluster.pool("first", run, Numbers) as first:
        assert list(first.map("double", [(1,)])) == [2]
        free = int(ray.available_resources().get("CPU", 0)) // 2
        found: list[int] = []

        def second() -> None:
            with cluster.pool("second", run.model_copy(update={"workers": free + 1}), Numbers) as workers:
                found.extend(workers.map("double", [(2,)]))

        thread = threading.Thread(target=second)
        thread.start()
        said = ""
        while "second" not in said:
            assert thread.is_alive(), "it did not wait"
            said += capfd.readouterr().err
            time.sleep(0.1)
        assert f"second: waiting for {free + 1} workers of 2 CPU each" in said and not found
    thread.join()
    assert found == [4]


def test_more_than_the_cluster_ever_has_is_one_line(nodes, spread):
    with pytest.raises(BadInput, match=r"run.workers: 99 .*allowed: fewer.* 1 CPU each, of the \d that"):
        cluster.connect(Run(workers=99))
    with pytest.raises(BadInput, match="run.workers: 1 .*allowed: fewer, or another run.gpus: .*2 GPU each, of the 0"):
        cluster.connect(Run(workers=1, gpus=2.0))


@pytest.mark.parametrize(
    "cause, lost",
    [
        (RuntimeError("Connection closed by peer"), True),
        (torch.distributed.DistNetworkError("timed out"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (NotImplementedError("an operator"), False),
        (ValueError("a value"), False),
    ],
)
def test_what_a_worker_raises_of_its_own_is_not_taken_for_a_lost_worker(cause, lost):
    error = RuntimeError("Ray's")
    error.worker_failures = {0: RuntimeError("Connection closed by peer"), 1: cause}
    assert cluster._cause(error) == (error.worker_failures[0] if lost else cause, lost)


def test_what_a_lost_controller_has_reserved_is_given_back(nodes, spread):
    import ray
    from ray.util import placement_group

    cluster.connect(Run(workers=1))
    everything = [{"CPU": 1}] * int(ray.cluster_resources()["CPU"])
    assert placement_group(everything).wait(30)
    assert not placement_group(everything).wait(1)
    cluster._free_reserved()
    assert placement_group(everything).wait(30)
    cluster._free_reserved()


def test_a_cluster_that_does_not_start_in_time_is_one_line(monkeypatch):
    import ray

    def late(**options):
        raise Exception("The current node timed out\nduring startup.")  # as Ray does

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(BadInput) as error:
        cluster.connect(Run(workers=2))
    line = (
        "params.yaml: run.workers: Ray cannot start here: The current node timed out during startup.; allowed: another"
    )
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("address, token", [("127.0.0.1:1", None), (None, "1" * 64), ("nowhere", None)])
def test_a_cluster_that_cannot_be_joined_is_one_line_and_exit_code_2(nodes, spread, monkeypatch, address, token):
    import ray

    spread.change({"run.workers": 1})
    before = spread.files()
    if token:  # Ray reads it once
        done = spread.run("-m", "stages.latents", "24", RAY_AUTH_TOKEN=token)
    else:
        ray.shutdown()  # else the stage goes on in the cluster that the tests before it have joined
        monkeypatch.setenv("RAY_ADDRESS", address)
        done = spread.stage("latents", "24")
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert line.startswith(f"error: RAY_ADDRESS: '{address or nodes.address}': ") and "allowed: HOST:PORT" in line
    assert spread.files() == before
