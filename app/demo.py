"""Opens the dashboard on the runs of a folder.

python -m app.demo [--port 8501] [--headless] [--runs runs] [--data-root DIR]        (or: make demo)
"""

import os
import socket
import sys
from pathlib import Path

from models.command import run
from models.errors import InputError

PORT = 8501  # Streamlit's own, above which it looks for a free one by itself
OWN, EVERYWHERE = ("localhost", "127.0.0.1", "::1"), ("0.0.0.0", "::")  # addresses: this machine's alone; all of them


def demo(
    *,
    port: int = PORT,
    headless: bool = False,
    runs: Path = Path("runs"),
    data_root: Path | None = None,
    address: str = "localhost",
) -> None:
    """Start the dashboard, say at which address, and stay in it until Ctrl-C.

    Args:
        port: Where to listen; 8501, the default, stands for the first free port from there on.
        headless: Do not open a browser window.
        runs: Folder whose run folders are shown.
        data_root: The only folder from which data are opened, for a server that others use; without one, a click opens
            the data that a checkpoint names.
        address: Who may look: localhost is this machine alone, 0.0.0.0 everybody who reaches it.
    """
    if not runs.is_dir():
        raise InputError(f"there is no folder {runs}; name the one that holds the run folders with --runs")
    if not 1 <= port <= 65535:
        raise InputError(f"port {port} is outside 1..65535; choose another --port")
    if data_root is not None and not data_root.is_dir():
        raise InputError(f"there is no folder {data_root}; name the one that holds the data with --data-root")
    command = [sys.executable, *streamlit_arguments(port, headless, runs, data_root, address)]
    os.execv(command[0], command)


def streamlit_arguments(port: int, headless: bool, runs: Path, data_root: Path | None, address: str) -> list[str]:
    """The arguments of Python that run the app under Streamlit; what holds however it is started is in
    ``app/.streamlit/config.toml``.
    """
    options = {"server.headless": str(headless).lower(), "server.address": address}
    if address not in OWN:
        options["browser.serverAddress"] = socket.gethostname() if address in EVERYWHERE else address
    if port != PORT:
        options["server.port"] = str(port)
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    folders = ["--runs", str(runs), *([] if data_root is None else ["--data-root", str(data_root)])]
    return ["-m", "streamlit", "run", str(Path(__file__).with_name("main.py")), *words, "--", *folders]


if __name__ == "__main__":
    run(demo, prog="python -m app.demo")
