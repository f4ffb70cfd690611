"""Visitors of the dashboard without browsers: each speaks Streamlit's messages over a socket of its own.

    .venv/bin/python tests/sessions.py runs --visitors 20 --seconds 60

Every visitor opens *Steps* on an image of its own and moves the slider, a second after each answer. `tests/campaign.py`
writes what this measures into docs/reliability.md.
"""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import tyro
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parents[1]
PAUSE, PATIENCE = 1.0, 120.0  # seconds


@dataclass
class Measured:
    """Seconds of every answer but a visitor's first, what went wrong, and of the server the seconds of the processor
    and the memory before and after, in MB.
    """

    answers: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    processor: float = 0.0
    megabytes: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        middle, slowest = (np.median(self.answers), max(self.answers)) if self.answers else (np.nan, np.nan)
        first, last = self.megabytes
        spent = f"{self.processor:.0f} s of a core, {first:.0f} to {last:.0f} MB"
        return f"median {middle:.2f} s, slowest {slowest:.1f} s; the server: {spent}"


@contextmanager
def server(runs: Path) -> Iterator[tuple[int, int]]:
    """A dashboard on a free port: port and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "streamlit", "run", ROOT / "app" / "main.py", "--server.port", port, "--server.headless", "true"]
    command = [sys.executable, *map(str, words), "--", "--runs", str(runs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def wait_for(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return urlopen(f"http://localhost:{port}/_stcore/health").close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def memory(process: int) -> float:
    """Resident, in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor(process: int) -> float:
    """Seconds that a process has used."""
    spent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")


class Visitor:
    """One session: the page that its link names, and the slider on it."""

    def __init__(self, connection: ClientConnection, link: str):
        self.connection, self.link, self.slider, self.fragment, self.steps = connection, link, "", "", 0

    def run(self, step: int | None = None) -> list[str]:
        """Ask for the page, or for what moves with the slider; what is wrong with the answer."""
        asked = BackMsg()
        asked.rerun_script.query_string = self.link
        asked.rerun_script.page_name = "steps"
        if step is not None:
            asked.rerun_script.fragment_id = self.fragment
            state = asked.rerun_script.widget_states.widgets.add(id=self.slider)
            state.double_array_value.data.append(step)
        self.connection.send(asked.SerializeToString())
        return self.listen()

    def listen(self) -> list[str]:
        wrong = []
        while True:
            said = ForwardMsg.FromString(self.connection.recv(timeout=PATIENCE))
            kind = said.WhichOneof("type")
            if kind == "script_finished":
                return wrong
            if kind != "delta" or said.delta.WhichOneof("type") != "new_element":
                continue
            element = said.delta.new_element
            if element.HasField("exception"):
                wrong.append(element.exception.message)
            elif element.HasField("alert") and element.alert.format == element.alert.ERROR:
                wrong.append(element.alert.body)
            elif element.HasField("slider"):
                self.slider, self.fragment, self.steps = element.slider.id, said.delta.fragment_id, element.slider.max


def visit(port: int, number: int, until: float, measured: Measured) -> None:
    """Open the page, then move the slider until the time is over."""
    rng = random.Random(number)
    try:
        how = dict(origin=f"http://localhost:{port}", max_size=None, ping_interval=None)
        with connect(f"ws://localhost:{port}/_stcore/stream", **how) as connection:
            visitor = Visitor(connection, f"image={number}")
            measured.wrong += visitor.run()
            if not visitor.fragment:
                measured.wrong.append("the page has no slider")
                return
            while time.monotonic() < until:
                time.sleep(PAUSE * rng.random() * 2)
                started = time.monotonic()
                measured.wrong += visitor.run(rng.randint(0, int(visitor.steps)))
                measured.answers.append(time.monotonic() - started)
    except Exception as error:
        measured.wrong.append(repr(error))


def sessions(runs: Path, *, visitors: int = 20, seconds: float = 60) -> Measured:
    """So many visitors at once."""
    measured = Measured()
    with server(runs) as (port, process):
        visit(port, 0, 0, measured)  # what is loaded once
        first, before, until = memory(process), processor(process), time.monotonic() + seconds
        threads = [threading.Thread(target=visit, args=(port, i, until, measured)) for i in range(visitors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        measured.processor, measured.megabytes = processor(process) - before, (first, memory(process))
    return measured


def main(runs: tyro.conf.Positional[Path] = ROOT / "runs", *, visitors: int = 20, seconds: float = 60) -> None:
    """Print the seconds of an answer, and what went wrong."""
    measured = sessions(runs, visitors=visitors, seconds=seconds)
    print(f"{visitors} visitors, {len(measured.answers)} answers: {measured}", *measured.wrong[:5], sep="\n")
    sys.exit(bool(measured.wrong))


if __name__ == "__main__":
    tyro.cli(main)
