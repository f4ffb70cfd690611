"""The launcher of the dashboard: which port it takes, and what it says about bad input."""

import socket
import subprocess
import sys

import pytest

from app.demo import free_port, is_free, streamlit_arguments
from models.errors import InputError


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_somebody_listens_at_is_passed_over(address):
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert free_port(port) > port
    assert is_free(port)
    assert free_port(port) == port


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be_is_refused(port):
    with pytest.raises(InputError, match=r"outside 1\.\.65535"):
        free_port(port)


def test_the_last_port_taken_is_an_error_not_an_endless_search(monkeypatch):
    monkeypatch.setattr("app.demo.is_free", lambda port: False)
    with pytest.raises(InputError, match="no port from 65530"):
        free_port(65530)


def test_a_missing_runs_folder_is_one_sentence_and_exit_2(tmp_path):
    command = [sys.executable, "-m", "app.demo", "--headless", "--runs", str(tmp_path / "nowhere")]
    end = subprocess.run(command, capture_output=True, text=True)
    assert end.returncode == 2
    assert end.stdout == ""
    assert "nowhere" in end.stderr and end.stderr.count("\n") == 1


def test_the_app_gets_its_runs_folder_and_streamlit_its_port(tmp_path):
    arguments = streamlit_arguments(8512, True, tmp_path)
    ours = arguments.index("--")
    assert arguments[ours + 1 :] == ["--runs", str(tmp_path)]
    assert arguments[arguments.index("--server.port") + 1] == "8512"
    assert arguments[arguments.index("--server.headless") + 1] == "true"
