"""Where everything in a run's folder lies, and how it is written: whole or not at all, by one process at a time."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import InputError


def checkpoint(run: Path) -> Path:
    return run / "ckpt.pt"


def last(run: Path) -> Path:
    """All that resuming needs."""
    return run / "last.pt"


def log(run: Path) -> Path:
    return run / "train.jsonl"


def result(run: Path, probe: str) -> Path:
    return run / f"{probe}.nc"


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


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds `run`/lock while a long command lives; a second one is refused. The lock dies with its process."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{run} is being written by another live process; wait for it or choose another --out") from None
        yield


def claim(run: Path, *, resume: bool, force: bool) -> None:
    """Refuse a folder that already holds a run, unless it is to be continued or started over."""
    if force:
        for path in (checkpoint(run), last(run), log(run), *run.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
    elif not resume and run.exists() and any(path.name != "lock" for path in run.iterdir()):
        raise InputError(f"{run} is not empty; pass --resume to continue it, --force to start over, or another --out")
