"""A kill while DVC writes its own files needs no hand: the next run puts them right, and says so in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT, called, processes, until

from flows import graph, mend
from stages.common import lockfile

STAGES = """
    a: {cmd: echo a > a, outs: [a]}
    b: {cmd: mkdir b && cp a b, deps: [a], outs: [b]}
    c: {cmd: cp -r b c, deps: [b], outs: [c]}
"""
CUT = "dvc.lock: a kill has cut it short; the last whole one is put back\n"


@pytest.fixture
def done(pipeline):
    """A pipeline that has run, whose lock is kept."""
    pipeline.write(STAGES)
    pipeline.run("dvc", "repro")
    mend.run()
    return pipeline


def test_a_lock_that_is_cut_anywhere_is_put_back_as_it_was(done, capfd):
    whole = done.lock()
    places = [0, *(index + 1 for index, letter in enumerate(whole) if letter == "\n"), len(whole) - 1]
    assert lockfile.addresses(whole) == ["a", "b", "c"]
    for place in places[:-2]:  # the last but one is the end: nothing is cut
        assert lockfile.is_cut(whole[:place]), whole[:place][-60:]
    for place in (0, whole.index("  c:"), len(whole) - 1):
        (done.folder / "dvc.lock").write_text(whole[:place])
        mend.run()
        assert done.lock() == whole and capfd.readouterr().err == CUT
    mend.run()
    assert capfd.readouterr().err == "" and done.is_clean()


def test_a_lock_with_a_flipped_bit_in_a_key_is_put_back_and_one_in_a_value_is_dvcs(done, capfd):
    whole, path = done.lock(), done.folder / "dvc.lock"
    path.write_text(whole.replace("size: ", "rize: ", 1))
    assert not lockfile.is_cut(path.read_text())
    mend.run()
    assert done.lock() == whole and capfd.readouterr().err == CUT.replace("a kill has cut it short", "damaged")
    path.write_bytes(whole.encode().replace(b"md5: ", b"md5: \xff", 1))
    lockfile.keep()
    mend.run()
    assert done.lock() == whole and capfd.readouterr().err == CUT.replace("a kill has cut it short", "damaged")
    path.write_text(whole.replace("md5: ", "md5: 0", 1))
    mend.run()
    assert done.lock() != whole and capfd.readouterr().err == ""
    done.run("dvc", "repro")
    assert done.lock() == whole


def test_a_lock_of_another_branch_and_one_that_was_deleted_stay(done, capfd):
    whole = done.lock()
    shorter = whole[: whole.index("  c:")]
    (done.folder / "dvc.lock").write_text(shorter)
    done.run("git", "add", "dvc.lock")
    done.run("git", "commit", "-qm", "fewer stages")
    mend.run()
    assert done.lock() == shorter == lockfile.KEPT.read_text()
    (done.folder / "dvc.lock").unlink()
    mend.run()
    assert not (done.folder / "dvc.lock").exists() and capfd.readouterr().err == ""


def test_without_a_kept_lock_the_committed_one_is_put_back_else_none(done, capfd):
    whole = done.lock()
    removed = "dvc.lock: a kill has cut it short; removed, its stages come from DVC's cache\n"
    for line, left in ((removed, ""), (removed, whole[:50]), (CUT, whole[:50])):
        shutil.rmtree(".dvc/tmp")
        (done.folder / "dvc.lock").write_text(left)
        assert called("flows.mend").stderr == line
        done.run("dvc", "repro")
        assert done.lock() == whole and done.is_clean()
        if left:
            done.run("git", "commit", "-qam", "results", ok=False)  # nothing else the last time


def test_after_a_killed_run_the_lock_has_the_order_of_a_plain_repro(done):
    whole = done.lock()
    start, a, b, c = re.split(r"^(?=  [abc]:)", whole, flags=re.MULTILINE)
    (done.folder / "dvc.lock").unlink()
    assert graph.order_before() == []
    (done.folder / "dvc.lock").write_text(start + c + a)  # as the stages ended, until the run was killed
    assert graph.order_before() == []
    (done.folder / "dvc.lock").write_text(start + c + a + b)
    graph.restore_order(graph.order_before(), graph.plan())
    assert done.lock() == whole == lockfile.KEPT.read_text()
    for other in ('["b"]', '["a", "b'):  # of a run on another branch; torn
        graph.ORDER.write_text(other)
        assert graph.order_before() == ["a", "b", "c"]


def test_a_plan_of_several_targets_has_the_order_of_the_whole_plan(pipeline):
    names = "hgfedcba"  # an order by chance is this one in 1 of 40,320 tries
    lines = (f"{name}: {{cmd: echo {name} > {name}, outs: [{name}]}}" for name in names + "ijklmnopqrstuvwxyz")
    pipeline.write("\n".join(lines))
    assert [stage.address for stage in graph.plan(sorted(names))] == list(names)


def holder(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", *arguments])


def test_locks_of_processes_that_are_gone_are_removed_and_no_others(done, capfd):
    alive, gone = holder("repro", "b"), holder()
    other = subprocess.Popen(["sleep", "1000"])
    try:
        gone.kill()  # nobody waits for it: the system still knows its number
        entries = {
            "x": {"pid": alive.pid, "cmd": "/bin/dvc repro b"},
            "y": {"pid": alive.pid, "cmd": "/bin/dvc repro another"},  # who had this number before
            "z": {"pid": gone.pid, "cmd": "-c"},
            "v": {"pid": other.pid, "cmd": "/checkout/flows/reproduce.py"},  # the same, without arguments
            "w": {"pid": -5, "cmd": "/bin/dvc repro b"},
        }
        table = done.folder / ".dvc/tmp/rwlock"
        table.write_text(json.dumps({"write": entries, "read": {name: [each] for name, each in entries.items()}}))
        until(lambda: psutil.Process(gone.pid).status() == psutil.STATUS_ZOMBIE)
        mend.run()
        left = json.loads(table.read_text())
        assert left == {"write": {"x": entries["x"]}, "read": {"x": [entries["x"]]}}
        assert capfd.readouterr().err.endswith("rwlock: the locks of processes that are gone are removed\n")
    finally:
        for process in (alive, other):
            process.kill()
        alive.wait(), gone.wait(), other.wait()


@pytest.mark.parametrize("torn", ["", '{"write": {"/a": {"pi', '{"write": {"/a": {}}}'])
def test_a_torn_table_of_locks_is_removed(done, capfd, torn):
    (done.folder / ".dvc/tmp/rwlock").write_text(torn)
    mend.run()
    assert capfd.readouterr().err.endswith("rwlock: a kill has cut it short; removed\n") and done.is_clean()


def test_a_plan_waits_for_a_dvc_that_is_about_to_end(done):
    busy = holder("repro", "b")
    threading.Timer(1.5, busy.kill).start()
    threading.Thread(target=busy.wait).start()
    entry = {"pid": busy.pid, "cmd": "dvc repro b"}
    (done.folder / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {str(done.folder / "b"): entry}}))
    started = time.monotonic()
    assert [stage.current for stage in graph.plan()] == [True] * 3
    assert time.monotonic() - started > 1


def test_a_killed_dvc_takes_its_stage_with_it_also_behind_a_shell(done):
    marker = f"7{os.getpid()}"
    (done.folder / "work.py").write_text(f"""
import time
from stages.common import orphans
orphans.end_with(orphans.starter())
open("started", "w").close()
time.sleep({marker})
""")
    done.write(STAGES + f"    d: {{cmd: {sys.executable} work.py {marker}; true, outs: [d]}}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    dvc = subprocess.Popen(["dvc", "repro", "d"], env=environment, start_new_session=True)
    until((done.folder / "started").exists)
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    assert processes(f"work.py {marker}")
    until(lambda: not processes(f"work.py {marker}"), 30)
