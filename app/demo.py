"""Opens the dashboard on the runs of a folder, at the first free port.

python -m app.demo [--port 8501] [--headless] [--runs runs]        (or: make demo)
"""

import os
import socket
import sys
from pathlib import Path

from models.command import run
from models.errors import InputError

ADDRESSES = ("127.0.0.1", "0.0.0.0")


def demo(*, port: int = 8501, headless: bool = False, runs: Path = Path("runs")) -> None:
    """Start the dashboard and stay in it until Ctrl-C.

    Args:
        port: Where to look for a free port first; the next free one above it is taken.
        headless: Do not open a browser window.
        runs: Folder whose run folders are shown.
    """
    if not runs.is_dir():
        raise InputError(f"there is no folder {runs}; name the one that holds the run folders with --runs")
    found = free_port(port)
    taken = f" (port {port} is taken)" if found != port else ""
    print(f"dashboard: http://localhost:{found}{taken}; Ctrl-C ends it", flush=True)
    command = [sys.executable, *streamlit_arguments(found, headless, runs)]
    os.execv(command[0], command)


def streamlit_arguments(port: int, headless: bool, runs: Path) -> list[str]:
    """The arguments of Python that run the app under Streamlit: no questions, no statistics sent."""
    options = {"port": port, "headless": str(headless).lower(), "showEmailPrompt": "false"}
    server = [word for name, value in options.items() for word in (f"--server.{name}", str(value))]
    main = str(Path(__file__).with_name("main.py"))
    return ["-m", "streamlit", "run", main, *server, "--browser.gatherUsageStats", "false", "--", "--runs", str(runs)]


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens at; InputError if there is none."""
    if not 1 <= first <= 65535:
        raise InputError(f"port {first} is outside 1..65535; choose another --port")
    for port in range(first, 65536):
        if is_free(port):
            return port
    raise InputError(f"no port from {first} to 65535 is free; choose a lower --port")


def is_free(port: int) -> bool:
    """Whether a server could listen at `port`, on the loopback address and on all of them."""
    try:
        for address in ADDRESSES:
            with socket.socket() as candidate:
                candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                candidate.bind((address, port))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    run(demo, prog="python -m app.demo")
