"""Where everything in a run's folder lies, and how it is written: whole or not at all, by one process at a time."""

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from models.errors import InputError


class Held(InputError):
    """Somebody else is at work in a folder."""


def checkpoint(run: Path) -> Path:
    return run / "ckpt.pt"


def last(run: Path) -> Path:
    """All that resuming needs."""
    return run / "last.pt"


def log(run: Path) -> Path:
    return run / "train.jsonl"


def result(run: Path, probe: str) -> Path:
    return run / f"{probe}.nc"


def pruning_round(run: Path, number: int) -> Path:
    """What a finished round of pruning leaves: a folder that is never rewritten."""
    return run / "rounds" / f"{number:02d}"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name to write to; on success it is synced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """A dict of tensors and plain values as a torch file, serialised first: torch hides a full disk behind an error of
    its own.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


@contextmanager
def owned(run: Path, *, resume: bool, force: bool) -> Iterator[None]:
    """The run folder, claimed and locked by the first process of a long command."""
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    with locked(run):
        claim(run, resume=resume, force=force)
        yield


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds `run`/lock while a long command lives; a second one is refused. The lock dies with its process."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run} cannot be made a run folder ({error.strerror}); choose another --out") from None
    lock = FileLock(run / "lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise Held(f"{run} is being written by another live process; wait for it or choose another --out") from None


def claim(run: Path, *, resume: bool, force: bool) -> None:
    """Refuse a folder that already holds a run, unless it is to be continued or started over."""
    if force:
        results = sorted(path.name for path in run.glob("*.nc") if not path.name.startswith("prune"))
        if results:
            raise InputError(
                f"{run} holds results of the model that --force would replace: {', '.join(results)}; move or remove "
                "them first, or choose another --out"
            )
        shutil.rmtree(run / "rounds", ignore_errors=True)
        ours = (checkpoint(run), last(run), log(run), run / "prune.json")
        for path in (*ours, *run.glob("events.out.tfevents.*"), *run.glob("prune*.nc")):
            path.unlink(missing_ok=True)
    elif not resume and run.exists() and any(path.name != "lock" for path in run.iterdir()):
        raise InputError(f"{run} is not empty; pass --resume to continue it, --force to start over, or another --out")
