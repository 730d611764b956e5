"""Prefect on PostgreSQL, with the commands of docs/scaling.md: a real server, a real database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, free_port, until

from flows import connection, dashboard

AUTH = "admin:right"
BINARIES = [Path(shutil.which("initdb") or "/nowhere").resolve().parent, *Path("/usr/lib/postgresql").glob("*/bin")]
BIN = next((folder for folder in BINARIES if (folder / "initdb").exists()), None)


@pytest.fixture
def query(monkeypatch) -> Callable[[str], str]:
    """What a PostgreSQL of the test's own, on a Unix socket, answers to SQL; Prefect is told of it."""
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL does not run as root
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # pytest's own are closed to that user

    def run(tool: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [str(BIN / tool), *arguments]
        return subprocess.run(command, cwd=folder, user=user, check=True, text=True, stdout=subprocess.PIPE)

    try:
        if user:
            shutil.chown(folder, user)
        run("initdb", "-D", "data", "-U", "prefect", "-A", "trust", "--no-sync")
        command = [str(BIN / "postgres"), "-D", "data", "-k", str(folder), "-h", ""]
        server = subprocess.Popen(command, cwd=folder, user=user, stderr=subprocess.DEVNULL)
        try:
            until((folder / ".s.PGSQL.5432").exists)
            url = f"postgresql+asyncpg://prefect@/postgres?host={folder}"
            monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", url)
            sql = ["-h", str(folder), "-U", "prefect", "-d", "postgres", "-At", "-c"]
            yield lambda text: run("psql", *sql, text).stdout
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(not BIN, reason="no PostgreSQL here")
def test_runs_of_the_flow_are_kept_in_postgresql(query, pipeline, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(connection, "ADDRESS", tmp_path / "address")
    pipeline.write("a: {cmd: echo a > a, outs: [a]}\nb: {cmd: cat a > b, deps: [a], outs: [b]}")
    subprocess.run([sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"], check=True)
    with dashboard.prefect_server(free_port(), AUTH) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", AUTH)
        said = pipeline.run(sys.executable, "-m", "flows.reproduce")
    assert "2 stages ran" in said and pipeline.is_clean()
    assert query("select name, state_type from task_run order by name") == "a|COMPLETED\nb|COMPLETED\n"
    assert not list((tmp_path / "prefect").glob("*.db")), "nothing went to SQLite"
