"""The password of the dashboard, and the server that a run shows on: one line where either is none."""

from __future__ import annotations

import builtins
import errno
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows import connection
from stages.common.errors import BadInput


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_password_is_made_once():
    made, new = connection.password()
    assert new and made.startswith("admin:") and connection.password() == (made, False)


def test_a_disk_that_is_full_leaves_no_empty_password(monkeypatch):
    def full(*given, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(builtins, "open", full)
        connection.password()
    assert not connection.PASSWORD.exists() and connection.password()[1]


@pytest.mark.parametrize("left", ["", "secret\n"])
def test_a_password_file_that_a_kill_has_cut_is_one_line(left):
    connection.HOME.mkdir()
    connection.PASSWORD.write_text(left)
    with pytest.raises(BadInput, match="^.prefect/password: holds no USER:PASSWORD; delete it, and a new one is made$"):
        connection.password()


@pytest.mark.parametrize(
    "url, auth, line",
    [
        ("http://localhost:abc/api", "admin:right", "PREFECT_API_URL: no server answers at http://localhost:abc/api;"),
        ("http://127.0.0.1:1/api", "admin:right", "PREFECT_API_URL: no server answers at http://127.0.0.1:1/api;"),
        ("http://127.0.0.1:1/api", "hunter2", "PREFECT_API_AUTH_STRING: is not allowed; allowed: USER:PASSWORD"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(monkeypatch, url, auth, line):
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth}):
        with pytest.raises(BadInput, match=f"^{line}") as error, connection.server():
            raise AssertionError("not refused")
    assert "hunter2" not in str(error.value)
