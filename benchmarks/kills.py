"""Something that is killed and run again, and what is left of it; `benchmarks.drill` says which."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.common import ROOT
from flows.mend import at_work
from stages.common import lockfile, orphans

GONE = 90.0  # seconds for all processes of a killed run to end; agents of Ray take a minute
FILLER = ".filler.tmp"
MOST = 4  # kills of one run; the next start is left alone
OTHERS = ("ray", f"torchinductor_{getpass.getuser()}")  # temporary: Ray's logs of each session, torch's one cache
FLOW = (sys.executable, "-m", "flows.reproduce")
MEND = (sys.executable, "-m", "flows.mend")

# A stage of the small pipeline: a chain of digests with a checkpoint after each link; the same however often it is cut.
WORK = """
import hashlib, os, shutil, sys, time
from pathlib import Path
from multiscale.core.temporary import write_whole
from stages.common import lockfile, orphans
orphans.end_with(orphans.starter())
lockfile.keep()
name, links = sys.argv[1], int(sys.argv[2])
kept, out = Path(".scratch", name), Path("out", name)
kept.parent.mkdir(exist_ok=True)
start = "".join(path.read_text() for path in map(Path, sys.argv[3:]))
done, value = kept.read_text().split() if kept.exists() else (0, hashlib.sha256(start.encode()).hexdigest())
for link in range(int(done), links):
    time.sleep(0.02)
    value = hashlib.sha256(value.encode()).hexdigest()
    write_whole(kept, f"{link + 1} {value}")
out.mkdir(parents=True, exist_ok=True)
write_whole(out / "value", value)
write_whole(out / "more", value * 1000)
kept.unlink()
"""
PARTS = "abcd"
MOMENTS = ("random", "lock", "rwlock", "checkpoint", "commit")


@dataclass
class Case:
    """Something that is run, killed and run again in a folder of its own."""

    name: str
    folder: Path
    commands: list[tuple[str, ...]]  # one after the other; the first that fails ends a run
    made: Callable[[Path], dict[str, str]]  # the digests of what a run leaves
    outs: tuple[str, ...]  # what is deleted for a new start
    moments: tuple[str, ...] = MOMENTS
    seconds: float = 0.0  # of a run that nobody disturbs
    wanted: dict[str, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[str]:
        self.temporary.mkdir(exist_ok=True)
        line = " && ".join(subprocess.list2cmdline(command) for command in self.commands[:-1]) or "true"
        command = ["sh", "-c", f'{line} && exec "$@"', "sh", *self.commands[-1]]
        log = open(self.folder / ".scratch.log", "w")
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log, text=True, start_new_session=True
        )

    @property
    def temporary(self) -> Path:
        """Its temporary directory, so that what is left there is seen."""
        return self.folder.with_name(f"tmp-{self.folder.name}")

    def environment(self) -> dict[str, str]:
        code = self.folder if (self.folder / "stages").exists() else ROOT
        return environment(code) | {"TMPDIR": str(self.temporary)}

    def said(self) -> list[str]:
        return (self.folder / ".scratch.log").read_text(errors="replace").splitlines()

    def reset(self) -> None:
        for path in (*(self.folder / out for out in self.outs), self.temporary):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def reference(self) -> None:
        """Runs without a disturbance; what that makes is wanted from now on."""
        self.reset()
        started = time.monotonic()
        if self.start().wait():
            sys.exit("\n".join(["error: the case " + self.name, *self.said()[-20:]]))
        self.seconds, self.wanted = time.monotonic() - started, self.made(self.folder)


def digests(folder: Path, *outs: str) -> dict[str, str]:
    """The digests of files and of all that is in folders."""
    files = [path for out in outs for path in (folder / out, *(folder / out).rglob("*"))]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(files)
        if path.is_file()
    }


def strangers(folder: Path) -> list[str]:
    """What a kill has left in a folder: locks that are cut or of nobody, temporary files."""
    found, table = [], folder / ".dvc/tmp/rwlock"
    if (folder / "dvc.lock").exists() and not lockfile.addresses(lockfile.read(folder / "dvc.lock")):
        found.append("dvc.lock is cut")
    try:
        locks = json.loads(table.read_text()) if table.exists() else {}
        entries = [*locks.get("write", {}).values(), *(each for few in locks.get("read", {}).values() for each in few)]
        found += ["rwlock of nobody"] * any(not at_work(entry) for entry in entries)
    except ValueError:
        found.append("rwlock is cut")
    kinds = {path.relative_to(folder).parts[0] for path in folder.rglob(".*.tmp") if path.name != FILLER}
    return found + [f"temporary file in {kind}" for kind in sorted(kinds)]


def moment(case: Case, name: str, process: subprocess.Popen[str]) -> bool:
    """Waits for a moment of a run; False if it ended before."""
    if name == "random":
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, case.seconds))
        return process.poll() is None
    skip, before = random.randrange(4), _watch(case.folder, name)
    while process.poll() is None:
        time.sleep(0.001)
        now = _watch(case.folder, name)
        if now != before:
            skip, before = skip - 1, now
            if skip < 0:
                return True
    return False


def _watch(folder: Path, name: str) -> object:
    """What changes at a moment: DVC writes its lock or its table of locks, a checkpoint or the cache gets a file."""
    with suppress(FileNotFoundError):
        if name in ("lock", "rwlock"):
            about = (folder / {"lock": "dvc.lock", "rwlock": ".dvc/tmp/rwlock"}[name]).stat()
            return about.st_size, about.st_mtime_ns
        if name == "checkpoint":
            return {path.name for each in (".scratch", "data", "out") for path in (folder / each).rglob(".*.tmp")}
        return [each.stat().st_mtime_ns for each in os.scandir(folder / ".dvc/cache/files/md5")]
    return None


def kill(process: subprocess.Popen[str], who: str) -> list[psutil.Process]:
    """Kills the process that was started, all of its session, or one of those below it; gives all that there were."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        if who == "session":
            os.killpg(process.pid, signal.SIGKILL)
        elif who == "below" and below:
            random.choice(below).kill()
        else:
            process.kill()
        return below
    return []


def gone(processes: list[psutil.Process]) -> float | None:
    """The seconds until all have ended; None if some do not, which are then killed."""
    started = time.monotonic()
    while left := [each for each in processes if orphans.is_alive(each)]:
        if time.monotonic() - started > GONE:
            for each in left:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            return None
        time.sleep(0.05)
    return round(time.monotonic() - started, 2)


def rounds(case: Case, until: float, most: int = sys.maxsize) -> Iterator[dict]:
    """Kills runs and starts them again, to the end of the time or of so many kills; yields what happened."""
    kills = 0
    while time.monotonic() < until and kills < most:
        case.reset()
        killed: list[psutil.Process] = []
        for turn in range(MOST + 1):
            process, name = case.start(), case.moments[kills % len(case.moments)]
            who = random.choice(["main", "session", "below"])
            last = turn == MOST or kills >= most
            if not last and moment(case, name, process):
                kills += 1
                event = {"case": case.name, "kill": name, "who": who}
                below = kill(process, who)
                code = process.wait()
                event["left"] = strangers(case.folder)
                if random.random() < 0.5:  # else the next start meets what is about to end
                    event["gone"] = gone(below)
                killed.extend(below)
                yield event
                if code:
                    continue
            yield ended(case, process.wait(), gone(killed))
            break


def ended(case: Case, code: int, gone: float | None = 0.0) -> dict:
    """How a run that nobody killed ended, compared with the one that nobody disturbed."""
    event: dict = {"case": case.name, "ended": code, "gone": gone}
    if code:
        return event | {"said": case.said()[-8:]}
    made = case.made(case.folder)
    event["differs"] = sorted(key for key in made | case.wanted if made.get(key) != case.wanted.get(key))
    names = {path.name for path in case.temporary.iterdir() if path.name not in OTHERS}
    kept = [f"{name[:10]}… in the temporary directory" for name in sorted(names)]
    return event | {"left": strangers(case.folder) + kept}


def small(name: str, folder: Path, *commands: tuple[str, ...], moments: tuple[str, ...] = MOMENTS) -> Case:
    """The small pipeline, in a git and DVC project."""
    folder.mkdir(parents=True, exist_ok=True)
    many = {f"setting_{index}": [index, index + 0.5] for index in range(60)}
    (folder / "settings.yaml").write_text(json.dumps({part: many for part in PARTS}))
    (folder / "work.py").write_text(WORK)
    python = sys.executable
    train = {"cmd": f"{python} work.py ${{item}} 15 out/data/value", "params": [{"settings.yaml": ["${item}"]}]}
    train |= {"deps": ["out/data"], "outs": ["out/${item}"]}
    stages = {
        "data": {"cmd": f"{python} work.py data 10", "outs": ["out/data"]},
        "train": {"foreach": list(PARTS), "do": train},
        "report": {"cmd": f"{python} work.py report 10 " + " ".join(f"out/{part}/value" for part in PARTS)},
    }
    stages["report"] |= {"deps": [f"out/{part}" for part in PARTS], "outs": ["out/report"]}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (folder / ".gitignore").write_text("/out\n.scratch*\n*.tmp\n")
    make_project(folder)
    made = lambda folder: digests(folder, "dvc.lock", "out")  # noqa: E731
    return Case(name, folder, list(commands), made, ("dvc.lock", "out", ".dvc/cache", ".dvc/tmp", ".scratch"), moments)


def make_project(folder: Path) -> None:
    """Makes a folder a git and DVC project."""
    about = ("-c", "user.email=drill@example.org", "-c", "user.name=drill")
    call(folder, "git", "init", "-q")
    if not (folder / ".dvc").exists():
        call(folder, "dvc", "init", "-q")
        for setting in ("analytics", "check_update"):
            call(folder, "dvc", "config", f"core.{setting}", "false")
    call(folder, "git", "add", "-A")
    call(folder, "git", *about, "commit", "-qm", "drill")


def environment(code: Path) -> dict[str, str]:
    """Variables with which commands find this Python and the code in a folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PYTHONPATH": str(code), "PATH": path, "DVC_NO_ANALYTICS": "1"}


def call(folder: Path, *command: str) -> None:
    """Runs a command in a folder; one that fails ends the benchmark."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{done.stdout}{done.stderr}")
