"""Processes of their own that start at once: forked from a Python that has already imported what is heavy.

A `python -m ...` spends ten seconds on imports and a tenth of one on a small job. Code whose shapes are checked can be
neither compiled nor traced; here nothing is checked, as for whoever uses the toolkit.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

SERVER = multiprocessing.get_context("forkserver")
HEAVY = ["torch", "torch.utils.tensorboard", "timm", "timm.optim", "timm.scheduler", "transformer_lens", "accelerate"]
HEAVY += ["xarray", "h5netcdf", "scipy.stats", "matplotlib.pyplot", "plotly.graph_objects", "tyro"]
SERVER.set_forkserver_preload([*HEAVY, "models.vit", "models.data"])  # not pacmap: its threads do not outlive a fork


class Started:
    """``python -m module arguments`` or ``python -c script arguments``, in a process of its own."""

    def __init__(self, *words: object, **environment: str):
        self.words = [str(word) for word in words]
        self.folder = tempfile.TemporaryDirectory()
        self.said = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        self.process = SERVER.Process(target=_become, args=(self.words, environment, self.said))
        self.process.start()

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> CompletedProcess:
        """Waits for it: its exit code (the signal that killed it, negative) and what it said."""
        self.process.join()
        stdout, stderr = (file.read_text() if file.exists() else "" for file in self.said)
        self.folder.cleanup()
        return CompletedProcess(self.words, self.process.exitcode, stdout, stderr)


def python(*words: object, **environment: str) -> CompletedProcess:
    return Started(*words, **environment).end()


def _become(words: list[str], environment: dict[str, str], said: list[Path]) -> None:
    for number, file in enumerate(said, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ |= environment
    kind, what, *arguments = words
    sys.argv = [what if kind == "-m" else "-c", *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = ModuleType("__main__")
        exec(what, vars(sys.modules["__main__"]))
