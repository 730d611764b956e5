"""Kills runs at random and at chosen moments, fills the disk, damages files, and looks whether a hand is needed then.

    python -m benchmarks.drill                                # all cases for 25 minutes; each event adds a line to
    python -m benchmarks.drill --minutes 2 --cases dvc flow   # results/drill.jsonl, the last one their sum

dvc, flow, faults: a small pipeline of six stages with checkpoints and a long lock, by `dvc repro` (behind
`python -m flows.mend`) and by `flows.reproduce`; stages, workers, sweep: the tiny recipe's own stages, in a clone of
what is committed. A run is killed and started again until it ends by itself; then its outputs and dvc.lock must be
those of a run that nobody disturbed. `faults` needs the right to mount a small disk.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, line
from benchmarks.kills import FILLER, FLOW, MEND, Case, call, digests, ended, make_project, rounds, small

SWEEP = """
method: dit
metric: kid
trials: 2
budget: 0.5
images: 20
concurrency: 1
space: {methods.dit.scales.0.guidance_scale: {grid: [1.0, 2.0]}}
"""


def tiny(folder: Path) -> None:
    """A clone of what is committed, with the tiny recipe and a sweep, `drill`; nothing has run."""
    call(ROOT, "git", "clone", "-q", str(ROOT), str(folder))
    shutil.copy(ROOT / "tests/tiny.yaml", folder / "params/recipes/tiny.yaml")
    (folder / "dvc.lock").unlink()
    call(folder, sys.executable, "-m", "stages.recipe", "tiny", "--force")
    (folder / "params/sweeps/drill.yaml").write_text(SWEEP)
    make_project(folder)


def real(folder: Path) -> list[Case]:
    """The tiny recipe in clones: the first stages, the classifier by two workers, and a sweep."""
    tiny(folder)
    outs = ("dvc.lock", "data/code", "data/images.parquet", "models", ".dvc/cache", ".dvc/tmp", ".scratch")
    stages = Case(
        "stages",
        folder,
        [(*FLOW, "vae", "classifier")],
        lambda folder: digests(folder, "dvc.lock", "data/images.parquet", "models"),
        outs,
    )
    copy = folder.with_name("workers")
    workers = Case(
        "workers",
        copy,
        [(sys.executable, "-m", "stages.vae")],
        lambda folder: digests(folder, "models/vae"),
        ("models/vae", ".scratch"),
        ("random", "checkpoint"),
    )
    swept = Case(
        "sweep",
        folder.with_name("sweep"),
        [(sys.executable, "-m", "flows.sweeps", "drill")],
        _ranked,
        (".scratch/sweeps", "reports/sweeps/drill"),
        ("random", "checkpoint"),
    )
    return [stages, workers, swept]


def _ranked(folder: Path) -> dict[str, str]:
    """The trials of a sweep, without their times."""
    import polars as pl

    rows = pl.read_parquet(folder / "reports/sweeps/drill/trials.parquet")
    kept = [name for name in rows.columns if name in ("kid", "fd", "state", "methods.dit.scales.0.guidance_scale")]
    return {str(row[0]): str(row) for row in rows.select(kept).sort(kept).rows()}


def faults(case: Case, until: float) -> Iterator[dict]:
    """Faults one after the other, to the end of the time; the run after each must end as if there had been none."""
    found = _faults(case)
    while time.monotonic() < until and (event := next(found, None)):
        yield event | {"after": ended(case, case.start().wait())}


def _faults(case: Case) -> Iterator[dict]:
    """Damaged files, a disk that is read-only, and a full one."""
    damages: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda whole: b"",
        "half": lambda whole: whole[: len(whole) // 2],
        "flipped": lambda whole: whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
    }
    for name in ("dvc.lock", ".dvc/tmp/rwlock", ".dvc/tmp/dvc.lock.kept", "out/a/more", "out/report/more"):
        for how, damage in damages.items():
            path = case.folder / name
            whole = path.read_bytes() if path.exists() else b""
            path.unlink(missing_ok=True)  # the cache may hold the same file
            path.write_bytes(damage(whole) if len(whole) > 100 else b"")
            yield {"case": case.name, "fault": f"{name}: {how}"}
    filler, mount = case.folder / FILLER, str(case.folder)
    case.reset()
    subprocess.run(["mount", "-o", "remount,ro", mount])
    done = subprocess.run(FLOW, cwd=case.folder, env=case.environment(), capture_output=True, text=True)
    subprocess.run(["mount", "-o", "remount,rw", mount])
    yield {"case": case.name, "fault": "read-only", "exit": done.returncode, "said": done.stderr.splitlines()[-3:]}
    for spare in (0, 4, 16, 64, 256, 1024):  # KB
        case.reset()
        process = case.start()
        time.sleep(random.uniform(0.3, 0.6) * case.seconds)
        free = shutil.disk_usage(mount).free // 1024 - spare
        with suppress(OSError), open(filler, "wb") as file:
            file.write(bytes(max(0, free) * 1024))
        code = process.wait()
        event = {"case": case.name, "fault": f"{spare} KB free", "exit": code, "said": case.said()[-3:]}
        filler.unlink(missing_ok=True)
        yield event


def main(minutes: float, cases: list[str], out: Path) -> None:
    events: list[dict] = []
    began, disk = time.strftime("%Y-%m-%d"), None
    with tempfile.TemporaryDirectory() as place, open(out, "a", buffering=1) as file:
        base = Path(place)

        def note(found: Iterator[dict]) -> None:
            for event in found:
                events.append(event)
                print(line(event), file=file)

        try:
            made = {"dvc": small("dvc", base / "dvc", MEND, ("dvc", "repro"))}
            made["flow"] = small("flow", base / "flow", FLOW)
            if "faults" in cases:
                disk = base / "faults"
                disk.mkdir()
                if not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", disk]).returncode:
                    made["faults"] = small("faults", disk, FLOW)
            if {"stages", "workers", "sweep"} & set(cases):
                made |= {case.name: case for case in real(base / "stages")}
            chosen = [made[name] for name in cases if name in made]
            end = time.monotonic() + 60 * minutes
            for index, case in enumerate(chosen):
                if case.name in ("workers", "sweep"):
                    prepare(made["stages"].folder, case)
                case.reference()
                print(f"{case.name}: {case.seconds:.0f} s a run", file=sys.stderr, flush=True)
                now = time.monotonic()
                disturb = faults if case.name == "faults" else rounds
                note(disturb(case, now + (end - now) / (len(chosen) - index)))
        finally:
            if disk:
                subprocess.run(["umount", "--lazy", disk], stderr=subprocess.DEVNULL)
        print(line({"date": began, **summary(events)}), file=file)
    print(out.read_text().splitlines()[-1])


def prepare(source: Path, case: Case) -> None:
    """A copy of the clone in which what the case starts from has run."""
    shutil.rmtree(source / ".scratch", ignore_errors=True)
    needs = ["vae"] if case.name == "workers" else ["reference", "classifier", "decompose", "latents"]
    call(source, *FLOW, *needs)
    shutil.copytree(source, case.folder, symlinks=True)
    if case.name == "workers":
        settings = case.folder / "params.yaml"
        settings.write_text(settings.read_text().replace("workers: 0", "workers: 2", 1))


def summary(events: list[dict]) -> dict:
    """Kills, by moment and by what they left; how many starts after them needed a hand or gave another result."""
    kills = [event for event in events if "kill" in event]
    ends = [event.get("after", event) for event in events if "ended" in event or "after" in event]
    return {
        "kills": len(kills),
        "by_case": dict(Counter(event["case"] for event in kills)),
        "by_moment": dict(Counter(event["kill"] for event in kills)),
        "left_by_kills": dict(Counter(each for event in kills for each in event["left"])),
        "faults": sum("fault" in event for event in events),
        "ended_alone": len(ends),
        "hands": sum(bool(event["ended"]) for event in ends),
        "differences": sum(bool(event.get("differs")) for event in ends),
        "left_at_the_end": dict(Counter(each for event in ends for each in event.get("left", []))),
        "orphans": sum(event.get("gone", 0) is None for event in events),
        "longest_to_end": max((event["gone"] for event in events if event.get("gone")), default=0),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0)
    names = ["dvc", "flow", "faults", "stages", "workers", "sweep"]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=RESULTS / "drill.jsonl")
    given = parser.parse_args()
    main(given.minutes, given.cases, given.out)
