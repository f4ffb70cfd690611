"""Where everything in a run's folder lies, and how it is written: whole or not at all, by one process at a time."""

import errno
import glob
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from models.errors import InputError

CONTROLS = ("random", "shuffled", "shared", "union", "swap")  # other masks that pruning can be held against
EVENTS = ".bvit"  # how the names of our TensorBoard events end


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
    remove_leftovers(path.parent, path.name)
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


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the temporary files of `atomic` whose process is gone: those of one file, or all in a folder."""
    for path in folder.glob(f".{name if name == '*' else glob.escape(name)}.*.tmp"):
        process = re.fullmatch(r".*\.(\d{1,9})\.tmp", path.name)
        if process and not is_alive(int(process[1])):
            path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this machine is still there; this one's own writing is not at work when it asks."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


@contextmanager
def owned(run: Path, *, resume: bool, force: bool) -> Iterator[None]:
    """The run folder, claimed and locked by the first process of a long command."""
    if not is_first():
        yield
        return
    is_ours = (run / "lock").is_file()
    with locked(run):
        claim(run, resume=resume, force=force, is_ours=is_ours)
        yield


def is_first() -> bool:
    """Whether this is the first of the processes that one command runs in."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds `run`/lock while a long command lives; a second one is refused. The lock dies with its process, whatever
    processes that one has started.

    What a killed owner left half written is removed.
    """
    made_folder(run)
    lock = FileLock(run / "lock", timeout=0)
    try:
        with lock:
            for folder in (run, *(path for path in (run / "rounds").glob("[0-9]*") if not is_outside(path, run))):
                remove_leftovers(folder)
            yield
    except Timeout:
        raise Held(f"{run} is being written by another live process; wait for it or choose another --out") from None


def made_folder(run: Path) -> None:
    """Make a folder that is not there; `InputError` where it cannot be made."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run} cannot be made a run folder ({error.strerror}); choose another --out") from None


def refuse_unwritable(folder: Path, option: str = "--out") -> None:
    """`InputError` where a folder cannot be written to, or is not there and cannot be made; nothing is made."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        why = "cannot be written to" if there.is_dir() else "is no folder"
        raise InputError(f"{option}: {there} {why}; choose another place")


def claim(run: Path, *, resume: bool, force: bool, is_ours: bool = True) -> None:
    """Refuse a folder that already holds a run, unless it is to be continued or started over.

    Only a folder with a lock of ours (`is_ours`) is started over; of what is in it, files that we write are removed,
    each named on standard error. A link is refused: nothing here writes links, and nothing follows them.
    """
    refuse_taken(run, resume=resume, force=force)
    if force:
        start_over(run, is_ours)


def refuse_taken(run: Path, *, resume: bool, force: bool) -> None:
    """`InputError` for a folder that cannot be written to, or holds a run that is neither to be continued nor started
    over; nothing is changed.
    """
    if resume and force:
        raise InputError("--resume goes on and --force starts over; pass one of them")
    if not is_first():
        return
    refuse_unwritable(run)
    if not (resume or force) and run.is_dir() and any(path.name != "lock" for path in run.iterdir()):
        raise InputError(f"{run} is not empty; pass --resume to continue it, --force to start over, or another --out")


def start_over(run: Path, is_ours: bool) -> None:
    results = sorted(path.name for path in run.glob("*.nc") if path not in pruning_results(run))
    if results:
        raise InputError(
            f"{run} holds results of the model that --force would replace: {', '.join(results)}; move or remove "
            "them first, or choose another --out"
        )
    written = written_by_us(run)
    if written and not is_ours:
        raise InputError(
            f"{run} has no lock, so no run was made here and {written[0].name} may be somebody else's; --force leaves "
            "it alone: move it away, or choose another --out"
        )
    links = [path for path in written if is_outside(path, run)]
    if links:
        raise InputError(
            f"{links[0]} is a link or lies behind one, which --force does not follow; remove the link by hand, or "
            "choose another --out"
        )
    for path in written:
        path.unlink()
    for folder in (*{path.parent for path in written} - {run}, run / "rounds"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if written:
        names = ", ".join(str(path.relative_to(run)) for path in written)
        print(f"starting over in {run}: removed {names}", file=sys.stderr)


def pruning_results(run: Path) -> list[Path]:
    return [result(run, name) for name in ("prune", *(f"prune_{control}" for control in CONTROLS))]


def written_by_us(run: Path) -> list[Path]:
    """The files in a run folder that training and pruning write, by their names."""
    stages = [f"{name}.pt" for name in ("ckpt", "pruned", *CONTROLS)]
    rounds = [path for path in sorted((run / "rounds").glob("*")) if re.fullmatch(r"\d{2,}", path.name)]
    names = [
        *(checkpoint(run), last(run), log(run), run / "prune.json", *pruning_results(run)),
        *sorted(run.glob(f"events.out.tfevents.*{EVENTS}")),
        *(path for path in sorted(run.glob("last.*.pt")) if re.fullmatch(r"last\.\d{2,}\.\w+\.pt", path.name)),
        *(folder / stage for folder in rounds for stage in stages),
    ]
    return [path for path in names if path.is_file() or path.is_symlink()]


def is_outside(path: Path, run: Path) -> bool:
    """Whether a path of a run folder is a link, or lies behind one inside the folder."""
    return any(part.is_symlink() for part in (path, *path.parents) if part != run and run in part.parents)
