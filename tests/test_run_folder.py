"""Run with: pytest tests/test_run_folder.py"""

import os
import signal
import time
from pathlib import Path

import pytest

from models import run_folder
from models.errors import InputError

OURS = (
    *("ckpt.pt", "last.pt", "train.jsonl", "prune.json", "prune.nc", "prune_random.nc"),
    *("events.out.tfevents.1.host.2.0.bvit", "last.03.ckpt.pt", "rounds/00/ckpt.pt", "rounds/00/pruned.pt"),
)
NOT_OURS = (
    *("notes.txt", "prunes.nc.txt", "events.out.tfevents.9.other", "rounds/00/notes.txt", "rounds/mine/ckpt.pt"),
    *("last.backup.pt", "runs/ckpt.pt"),
)


def filled(run: Path) -> Path:
    for name in ("lock", *OURS, *NOT_OURS):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    return run


def held(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def start_over(run: Path) -> None:
    with run_folder.owned(run, resume=False, force=True):
        pass


def test_starting_over_removes_what_the_toolkit_wrote_and_says_so(tmp_path: Path, capsys) -> None:
    start_over(filled(tmp_path))
    assert held(tmp_path) == {"lock", *NOT_OURS}
    said = capsys.readouterr().err
    assert all(name in said for name in OURS) and not any(name in said for name in NOT_OURS)


def test_starting_over_where_no_run_was_made_touches_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "lock").unlink()
    before = held(tmp_path)
    with pytest.raises(InputError, match=r"has no lock, so no run was made here and ckpt.pt may be somebody else's"):
        start_over(tmp_path)
    assert held(tmp_path) - {"lock"} == before


@pytest.mark.parametrize("name", ["ckpt.pt", "rounds", "rounds/00"])
def test_starting_over_never_follows_a_link(tmp_path: Path, name: str) -> None:
    run, elsewhere = filled(tmp_path / "run"), tmp_path / "elsewhere"
    (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    before = held(tmp_path)
    with pytest.raises(InputError, match="is a link or lies behind one"):
        start_over(run)
    assert held(tmp_path) == before


def test_a_run_folder_that_is_itself_a_link_may_be_used(tmp_path: Path) -> None:
    filled(tmp_path / "disk")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    start_over(tmp_path / "run")
    assert held(tmp_path / "disk") == {"lock", *NOT_OURS}


def test_going_on_and_starting_over_exclude_each_other(tmp_path: Path) -> None:
    filled(tmp_path)
    before = held(tmp_path)
    with (
        pytest.raises(InputError, match="--resume goes on and --force starts over"),
        run_folder.owned(tmp_path, resume=True, force=True),
    ):
        pass
    assert held(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_lock_dies_with_its_owner_though_its_loading_process_lives(tmp_path: Path) -> None:
    ready, say = os.pipe()
    owner = os.fork()
    if not owner:
        with run_folder.locked(tmp_path):
            worker = os.fork()
            if worker:
                os.write(say, str(worker).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(ready, 20))
    with pytest.raises(InputError, match="another live process"), run_folder.locked(tmp_path):
        pass
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    try:
        os.kill(worker, 0)  # lives
        with run_folder.locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_new_owner_removes_what_a_killed_one_left_half_written(tmp_path: Path) -> None:
    left = [tmp_path / ".last.pt.4194305.tmp", tmp_path / "rounds" / "01" / ".ckpt.pt.4194305.tmp"]
    others = [tmp_path / ".last.pt.1.tmp", tmp_path / ".mine.tmp", tmp_path / "rounds" / "mine" / ".x.4194305.tmp"]
    for path in (*left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    with run_folder.locked(tmp_path):
        assert [path.exists() for path in (*left, *others)] == [False, False, True, True, True]
