"""The dashboard as a user has it: schedules that fire, runs that end when cancelled, results that really show."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from conftest import ROOT, Pipeline, called, free_port, processes, until
from prefect import get_client, settings
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterStartTime, LogFilter
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling

from stages.common.paths import RECIPES

SLEEP = f"8{os.getpid()}"  # seconds, found in the command line
STAGES = f"""
    sample:
      foreach: {{msf: grid, dit: strip}}
      do:
        cmd: mkdir -p samples/${{key}} && cp msf-grid.png samples/${{key}}/grid.png
        deps: [msf-grid.png]
        outs: ["samples/${{key}}"]
    report:
      cmd: mkdir -p reports && cp leaderboard.md reports/report.md && echo the report > reports/report.html
      deps: [leaderboard.md, samples]
      outs: [reports/report.html, reports/report.md]
    slow:
      cmd: touch started; sleep {SLEEP} & sleep {SLEEP}; echo a > slow
      outs: [slow]
"""
LEADERBOARD = "| method | KID |\n|---|---|\n| msf | 0.054 |\n| dit | 0.055 |\n\nN = 1000\n"


class Dashboard:
    """A dashboard that really runs, and what it printed."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port, self.log = folder, port, folder / ".prefect.log"
        self.api = f"http://127.0.0.1:{port}/api"

    def start(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(self.folder / ".prefect")}
        environment["PREFECT_RUNNER_POLL_FREQUENCY"] = "1"  # seconds between looks for runs to start, by default 10
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "flows.dashboard", "--port", str(self.port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        until(lambda: "Ctrl-C" in self.log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        self.password = (self.folder / ".prefect" / "password").read_text().strip()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait()

    def client(self):
        return get_client(sync_client=True)

    def deployment(self, name: str):
        """A deployment, once it is served."""
        return until(lambda: [each for each in self.client().read_deployments() if each.name == name])[0]

    def logs(self, run_id, sign: str) -> list[str]:
        """The lines of a flow run's log, once one of them begins with this."""
        found = self.client().read_logs(LogFilter(flow_run_id={"any_": [run_id]}), limit=200)
        lines = [line.message for line in found]
        return lines if any(line.startswith(sign) for line in lines) else []

    def final(self, run_id):
        """The last state of a flow run; waits for it."""
        until(lambda: self.client().read_flow_run(run_id).state.is_final())
        return self.client().read_flow_run(run_id).state


@pytest.fixture(scope="module")
def board(empty_pipeline, tmp_path_factory):
    folder = shutil.copytree(empty_pipeline, tmp_path_factory.mktemp("dashboard") / "project")
    shutil.copy(ROOT / "docs/pictures/msf-grid.png", folder)
    (folder / "leaderboard.md").write_text(LEADERBOARD)
    (folder / RECIPES).mkdir(parents=True)
    for name in ("digits", "faces"):
        (folder / RECIPES / f"{name}.yaml").touch()
    Pipeline(folder).write(STAGES)
    board = Dashboard(folder, free_port())
    board.start()
    with settings.temporary_settings(
        {settings.PREFECT_API_URL: board.api, settings.PREFECT_API_AUTH_STRING: board.password}
    ):
        yield board
    board.stop()


@pytest.fixture(scope="module")
def done(board):
    """A run that the deployment's schedule started, seconds after it was set."""
    schedule = IntervalSchedule(interval=timedelta(seconds=20), anchor_date=datetime.now(UTC))
    nightly = board.deployment("nightly")
    board.client().update_deployment(nightly.id, DeploymentUpdate(parameters={"targets": ["report"]}))
    added = board.client().create_deployment_schedules(nightly.id, [(schedule, True)])
    started = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[nightly.id]), start_time=FlowRunFilterStartTime(is_null_=False)
    )
    run = until(lambda: board.client().read_flow_runs(flow_run_filter=started))[0]
    board.final(run.id)
    board.client().delete_deployment_schedule(nightly.id, added[0].id)
    return board.client().read_flow_run(run.id)


def test_a_scheduled_run_completes(board, done):
    assert done.state.is_completed(), done.state.message
    assert done.state.message == "3 stages ran, 0 were up to date"
    assert done.auto_scheduled and (board.folder / "reports/report.html").exists()


def test_the_password_is_private_and_the_server_wants_it(board):
    path = board.folder / ".prefect/password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert board.log.read_text().count(board.password) == 1
    assert httpx.get(f"{board.api}/admin/version").status_code == 401
    report = f"http://127.0.0.1:{board.port + 1}/report.html"
    assert httpx.get(report).status_code == 401


def test_without_the_password_there_is_the_login_form_and_health_alone(board):
    root, auth = board.api.removesuffix("/api"), tuple(board.password.split(":"))
    for path in ("/docs", "/redoc", "/openapi.json", "/api/docs", "/api/openapi.json", "/metrics"):
        assert httpx.get(root + path).status_code == 401, path
        assert httpx.get(root + path, auth=("admin", "wrong")).status_code == 401, path
    assert httpx.get(f"{root}/docs", auth=auth).status_code == 200
    assert httpx.get(f"{board.api}/health").status_code == 200
    assert httpx.get(f"{root}/%00").status_code == 400


def test_the_server_answers_to_its_own_name_and_lets_no_other_page_read(board):
    auth, evil = tuple(board.password.split(":")), {"Origin": "http://evil.example"}
    page = httpx.get(f"{board.api}/admin/version", auth=auth, headers=evil)
    assert page.status_code == 200 and "access-control-allow-origin" not in page.headers
    for host, status in (("evil.example", 400), ("127.0.0.1.evil.example", 400), ("localhost", 200)):
        headers = {"Host": f"{host}:{board.port}"}
        assert httpx.get(f"{board.api}/admin/version", auth=auth, headers=headers).status_code == status, host


def test_the_report_is_served_to_who_knows_the_password(board, done):
    report = f"http://127.0.0.1:{board.port + 1}/report.html"
    user, _, secret = board.password.partition(":")
    assert httpx.get(report, auth=(user, secret)).text == "the report\n"
    assert httpx.get(report.replace("report.html", "%2e%2e/dvc.yaml"), auth=(user, secret)).status_code == 404


def test_a_link_in_the_dashboard_opens_the_report_without_another_login(board, done):
    (artifact,) = [each for each in board.client().read_artifacts() if each.key == "report" and each.description]
    link = re.search(r"\]\((.*)\)", artifact.data)[1]
    assert link.startswith(f"http://127.0.0.1:{board.port + 1}/report.html?key=") and board.password not in link
    with httpx.Client(follow_redirects=True) as visitor:
        page = visitor.get(link)
        assert page.text == "the report\n" and "key" not in str(page.url)
        assert visitor.get(page.url.join("report.md")).text == LEADERBOARD
    assert httpx.get(link[:-1] + ("0" if link[-1] != "0" else "1")).status_code == 401
    wrong = {"Cookie": "multiscale-reports=0"}
    assert httpx.get(link.partition("?")[0], headers=wrong).status_code == 401


def test_one_interface_is_served_without_analytics_and_adverts(board):
    root, auth = board.api.removesuffix("/api"), tuple(board.password.split(":"))
    assert httpx.get(f"{root}/ui-settings").json()["available_uis"] == ["v2"]
    home = httpx.get(root, headers={"Accept": "text/html"}, follow_redirects=True)
    assert home.status_code == 200 and home.url.path.startswith("/v2")
    sources = dict(part.split(" ", 1) for part in home.headers["Content-Security-Policy"].split("; "))
    named = [source for source in sources.pop("default-src").split() if "//" in source]
    assert not sources and named and all(urlsplit(source).netloc == "127.0.0.1:*" for source in named)
    server = httpx.get(f"{board.api}/admin/settings", auth=auth).json()["server"]
    assert server["analytics_enabled"] is False and server["ui"]["show_promotional_content"] is False


def test_a_run_is_named_by_what_it_does_and_its_log_by_stage(board, done):
    assert done.name == "report"
    assert until(lambda: board.logs(done.id, "sample@msf: Running stage"))


def test_the_form_is_typed_and_refuses_what_cannot_be(board):
    deployment = board.deployment("on-demand")
    form = deployment.parameter_openapi_schema["properties"]
    assert set(form) == {"targets", "recipe", "overrides", "experiment", "slots"}
    assert form["recipe"]["anyOf"][0]["enum"] == ["digits", "faces"]
    assert "put back after the run" in " ".join(form["overrides"]["description"].split())
    assert form["slots"]["anyOf"][0]["minimum"] == 1 and all(field["description"] for field in form.values())
    with pytest.raises(PrefectHTTPStatusError, match="409|422"):
        board.client().create_flow_run_from_deployment(deployment.id, parameters={"slots": 0})


def test_bad_input_in_the_form_ends_the_run_with_one_line(board):
    deployment = board.deployment("on-demand")
    run = board.client().create_flow_run_from_deployment(deployment.id, parameters={"targets": ["nope"]})
    state = board.final(run.id)
    assert state.name == "Failed"
    assert state.message.startswith("error: dvc.yaml: target: 'nope' is not allowed; allowed: ")
    logs = until(lambda: board.logs(run.id, state.message))
    assert not any("Traceback" in line for line in logs)


def test_a_cancelled_run_ends_its_stages_and_leaves_nothing(board):
    deployment = board.deployment("on-demand")
    run = board.client().create_flow_run_from_deployment(deployment.id, parameters={"targets": ["slow"]})
    until((board.folder / "started").exists)
    assert processes(f"sleep {SLEEP}")
    board.client().set_flow_run_state(run.id, Cancelling())
    until(lambda: not processes(f"sleep {SLEEP}"), 60)
    assert board.final(run.id).name == "Cancelled"
    assert not processes("repro -s slow") and not (board.folder / "slow").exists()
    pipeline = Pipeline(board.folder)
    pipeline.run("dvc", "repro", "report")
    assert "slow" in pipeline.run("dvc", "status"), "no lock is in the way"


def test_a_browser_shows_the_run_and_its_pictures(board, done, browser):
    browser.go(board.api.removesuffix("/api"))
    browser.type("input[type=password]", "admin:wrong")
    browser.click("button[type=submit]")
    browser.shows("document.body.innerText.includes('Invalid credentials')")
    browser.type("input[type=password]", board.password)
    browser.click("button[type=submit]")
    browser.shows("document.body.innerText.includes('Flow Runs')")
    browser.go(f"{board.api.removesuffix('/api')}/v2/runs/flow-run/{done.id}")
    browser.shows(f"document.body.innerText.includes({done.name!r}) && document.body.innerText.includes('Completed')")
    artifacts = {each.key: each.id for each in board.client().read_artifacts() if each.flow_run_id == done.id}
    assert set(artifacts) == {"stages", "progress", "samples", "leaderboard", "report"}
    page = board.api.removesuffix("/api") + "/v2/artifacts/artifact/"
    report = "document.querySelector('a[href*=\"/report.html?key=\"]')?.href"
    for key, sign in (
        ("samples", "[...document.images].filter(i => i.naturalWidth > 300).length == 2"),
        ("leaderboard", "document.body.innerText.includes('0.054')"),
        ("stages", "document.body.innerText.includes('sample@msf')"),
        ("report", report),
    ):
        browser.go(f"{page}{artifacts[key]}")
        browser.shows(sign)
        if folder := os.environ.get("SCREENSHOTS"):
            browser.picture(Path(folder) / f"{key}.png")
    browser.go(browser.shows(report))
    browser.shows("document.body.innerText.includes('the report') && !location.search")
    hosts = {urlsplit(url).hostname for url in browser.asked.values() if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}, "nobody else is asked for anything"


def test_a_child_that_ends_by_itself_at_the_end_of_the_dashboard_is_no_error():
    from flows import dashboard

    with subprocess.Popen(["true"]) as child:
        until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        with dashboard.ending_runs():
            pass


def test_a_restart_keeps_runs_schedules_and_password(board, done):
    before = board.password
    (board.folder / "started").unlink(missing_ok=True)
    slow = board.deployment("on-demand")
    board.client().create_flow_run_from_deployment(slow.id, parameters={"targets": ["slow"]})
    until((board.folder / "started").exists)
    assert board.stop() == 0
    assert not processes(f"sleep {SLEEP}"), "a run ends with its dashboard"
    assert not processes(f"--port {board.port}")
    board.start()
    assert board.password == before and before not in board.log.read_text()
    assert board.client().read_flow_run(done.id).state.is_completed()
    schedules = board.deployment("nightly").schedules
    assert [(each.active, each.schedule.cron) for each in schedules] == [(True, "0 2 * * *")]


def test_a_killed_dashboard_takes_its_run_with_it_and_the_next_run_is_not_refused(board):
    (board.folder / "started").unlink(missing_ok=True)
    slow = board.deployment("on-demand")
    board.client().create_flow_run_from_deployment(slow.id, parameters={"targets": ["slow"]})
    until((board.folder / "started").exists)
    board.process.kill()
    board.process.wait()
    until(lambda: not processes(f"sleep {SLEEP}"), 30)
    until(lambda: not processes("repro -s slow"), 30)
    board.start()
    run = board.client().create_flow_run_from_deployment(
        board.deployment("on-demand").id, parameters={"targets": ["report"]}
    )
    assert board.final(run.id).is_completed()


@pytest.mark.parametrize(
    "options, line",
    [
        (["--port", "PORT"], r"error: port \d+, for the dashboard, is busy \(.*\); choose another with --port\n"),
        (["--nightly", "often"], "error: dashboard: --nightly: 'often' is not allowed; allowed: a cron line"),
    ],
)
def test_a_busy_port_and_a_wrong_cron_line_are_one_line_each(board, monkeypatch, options, line):
    monkeypatch.chdir(board.folder)
    done = called("flows.dashboard", *(each.replace("PORT", str(board.port)) for each in options))
    assert done.returncode == 2 and re.match(line, done.stderr) and done.stderr.count("\n") == 1
