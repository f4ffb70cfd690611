"""The launcher of the dashboard: where it listens, what it says, and what it does not send."""

import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from app import demo

from .conftest import Served


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--runs", "nowhere"], "nowhere"), (["--port", 0], "port 0"), (["--port", 70000], "port 70000")],
)
def test_bad_input_is_one_sentence_and_exit_2(options, said, tmp_path):
    options = options if "--runs" in options else [*options, "--runs", tmp_path]
    command = [sys.executable, "-m", "app.demo", "--headless", *map(str, options)]
    end = subprocess.run(command, capture_output=True, text=True)
    assert end.returncode == 2 and end.stdout == ""
    assert said in end.stderr and end.stderr.count("\n") == 1


def arguments(**changed: object) -> list[str]:
    options = dict(port=demo.PORT, headless=True, runs="runs", data_root=None, address="localhost") | changed
    return demo.streamlit_arguments(**options)


def test_the_app_gets_its_folder_and_streamlit_the_port_only_where_one_is_named():
    assert arguments()[-3:] == ["--", "--runs", "runs"] and "--server.port" not in arguments()
    named = arguments(port=8512)
    assert named[named.index("--server.port") + 1] == "8512"


@pytest.mark.parametrize(("address", "is_open"), [("localhost", False), ("0.0.0.0", True), ("192.168.1.5", True)])
def test_only_this_machine_may_look_unless_asked(address, is_open, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda program, words: started.append(words))
    demo.demo(runs=tmp_path, address=address)
    words = started[0]
    assert words[words.index("--server.address") + 1] == address
    assert ("--browser.serverAddress" in words) == is_open  # else Streamlit would ask outside for the machine's own


def test_however_it_is_started_this_machine_alone_may_look_and_nothing_is_sent(served):
    """`served` is ``streamlit run app/main.py``, which reads the settings beside the script."""
    settings = tomllib.loads((Path(demo.__file__).parent / ".streamlit" / "config.toml").read_text())
    assert settings["browser"]["gatherUsageStats"] is False
    host, port = served.removeprefix("http://").split(":")
    assert host == "localhost"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", int(port)), timeout=5):
        pass


def test_a_port_that_is_taken_is_passed_over_and_the_address_printed_is_the_real_one(tiny_runs):
    taken = socket.socket()
    try:
        taken.bind(("127.0.0.1", demo.PORT))
        taken.listen()
    except OSError:
        pass  # by somebody else, which does as well
    dashboard = Served("-m", "app.demo", "--headless", "--runs", tiny_runs)
    try:
        address = dashboard.address()
        host, port = address.removeprefix("http://").split(":")
        assert host == "localhost" and int(port) > demo.PORT
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    finally:
        dashboard.stop()
        taken.close()
