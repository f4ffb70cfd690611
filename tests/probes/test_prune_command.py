"""Pruning as its command is run, and what lies in its folder. Run with: pytest tests/probes/test_prune_command.py"""

import json
import math
import shlex
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import xarray as xr

from models import checkpoint, load, open_data, run_folder
from models.checkpoint import fresh
from models.errors import InputError
from probes import prune
from probes.methods.plan import Plan
from tests.probes.test_prune import CONFIG, PLAN
from tests.warm import Started, python

COMMAND = shlex.split("-m probes.prune --steps 1 --data shapes-easy:128 --fields d_model=8 n_heads=2 n_steps=3")
COMMAND += shlex.split("--batch-size 16 --epochs 12 --graft-epochs 3 --replicates 1 --val-limit 50 --device cpu")


def test_the_command_killed_and_resumed_ends_in_the_same_masks(tmp_path: Path) -> None:
    def call(out: Path, *more: str) -> CompletedProcess:
        return python(*COMMAND, "--out", out, *more)

    straight = call(tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    assert "round   1" in straight.stdout and "replicates" in straight.stdout
    out = tmp_path / "killed"
    process = Started(*COMMAND, "--out", out)
    while process.is_alive() and not run_folder.pruning_round(out, 0).exists():
        time.sleep(0.05)
    process.kill()
    assert process.end().returncode == -signal.SIGKILL
    refused = call(out)
    assert refused.returncode == 2 and "--resume" in refused.stderr and "Traceback" not in refused.stderr
    changed = call(out, "--resume", "--seed", "1")
    assert changed.returncode == 2 and "same options" in changed.stderr
    assert call(out, "--resume").returncode == 0
    ours, theirs = (
        xr.load_dataset(run_folder.result(folder, "prune"), engine="h5netcdf")
        for folder in (out, tmp_path / "straight")
    )
    assert ours.drop_attrs().identical(theirs.drop_attrs())
    assert load(out / "ckpt.pt").config.n_steps == 3
    finished = call(out, "--resume")
    assert finished.returncode == 0 and "images/s" not in finished.stderr


def test_rewinding_to_a_checkpoints_initialisation(tmp_path: Path) -> None:
    model = fresh(CONFIG.__class__.from_dict(CONFIG.to_dict() | {"classes": open_data("shapes-easy").classes}), 5)
    init = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.head.weight.add_(1)
    source = tmp_path / "ckpt.pt"
    checkpoint.save(
        source, model, data="shapes-easy:64", init_sha256=checkpoint.state_sha256(init), provenance={"seed": 5}
    )
    plan = asdict(replace(PLAN, batch_size=16))
    options = {"source": str(source), "data": None, "fields": [], "preset": "", "val_limit": 50, "plan": plan}
    game = prune.opened(options, tmp_path / "out", "cpu")
    assert all(torch.equal(value, init[name]) for name, value in game.model.state_dict().items())
    assert len(game.train_set) == 64


def test_a_result_without_its_rounds_is_neither_continued_nor_written_over(tmp_path: Path, command) -> None:
    (tmp_path / "prune.nc").write_bytes(b"a result")
    for more in (["--resume"], ["--control", "random"]):
        code, _, complaint = command("probes.prune", "--out", tmp_path, *more)
        assert code == 2 and "without its rounds" in complaint
    assert (tmp_path / "prune.nc").read_bytes() == b"a result"


def test_other_options_are_named_one_by_one(tmp_path: Path) -> None:
    plan = dict(rounds=8, rate=0.2, seed=0)
    prune.keep_options(tmp_path, {"data": None, "plan": plan})
    prune.keep_options(tmp_path, {"data": None, "plan": plan})
    with pytest.raises(InputError, match=r"was started with rounds=8; resume"):
        prune.keep_options(tmp_path, {"data": None, "plan": plan | {"rounds": 5}})
    with pytest.raises(InputError, match=r"was started with data=None, rate=0.2; resume"):
        prune.keep_options(tmp_path, {"data": "shapes", "plan": plan | {"rate": 0.5}})


def test_a_control_does_not_start_over_what_it_measures(tmp_path: Path) -> None:
    (tmp_path / "prune.json").write_text("{}")
    for options in (dict(control="random", force=True), dict(resume=True, force=True)):
        with pytest.raises(InputError, match="leave one out|pass one of them"):
            prune.prune(out=tmp_path, **options)
    assert (tmp_path / "prune.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (dict(data="folder:nowhere"), "there is no file or folder nowhere"),
        (dict(preset="bvit_huge"), "no preset named 'bvit_huge'"),
        (dict(fields=("n_steps=2", "n_steps=3")), "--fields gives n_steps twice"),
        (dict(device="gpu"), "--device is 'gpu'"),
        (dict(val_limit=0), "--val-limit is 0"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_force_removes_anything(tmp_path: Path, wrong: dict, complaint: str) -> None:
    for name in ("prune.json", "lock"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=complaint):
        prune.prune(out=tmp_path, force=True, **wrong)
    assert {path.name for path in tmp_path.iterdir()} == {"prune.json", "lock"}


@pytest.mark.parametrize("rate", [math.inf, math.nan, 0.0, -1.0])
@pytest.mark.parametrize("name", ["lr", "graft_lr", "epochs", "graft_epochs"])
def test_a_plan_has_rates_and_passes_above_nothing_and_below_infinity(name: str, rate: float) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}.* must be numbers above 0"):
        Plan(**{name: rate})


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[1]", b"{}", b'{"plan": 3}', b'{"plan": {}, "seed"', b"[" * 100_000, None]
)
def test_a_damaged_record_of_options_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "rounds").mkdir()
    if content is None:
        (tmp_path / "prune.json").mkdir()
    else:
        (tmp_path / "prune.json").write_bytes(content)
    with pytest.raises(InputError, match=r"prune\.json is damaged"):
        prune.prune(out=tmp_path, control="random")


@pytest.mark.parametrize("change", [dict(source=3), dict(fields="d"), dict(plan={"rounds": "8"}), dict(plan={"x": 1})])
def test_options_that_pruning_did_not_note_are_one_sentence(tmp_path: Path, change: dict) -> None:
    noted = dict(source=None, preset="bvit_easy", fields=[], data="shapes-easy:64", val_limit=10, plan={}) | change
    (tmp_path / "prune.json").write_text(json.dumps(noted))
    with pytest.raises(InputError, match="is not as pruning noted it"):
        prune.prune(out=tmp_path, control="random")
