"""Run with: pytest tests/test_train.py"""

import json
import math
import multiprocessing
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import load
from models.data.augmented import Augmented
from models.errors import InputError
from models.loop import Order, is_finite
from models.run_folder import locked
from models.train import Options, Trainer, read_log, train

from .warm import SERVER, python

TINY = dict(
    data="shapes-easy:256",
    model="bvit_easy",
    fields=("d_model=16", "n_heads=2", "n_steps=2", "drop_path=0.1"),
    epochs=2.0,
    batch_size=32,
    val_limit=64,
    workers=0,
    device="cpu",
)


def state(run: Path) -> dict:
    return torch.load(run / "last.pt", weights_only=True)


def same(a: dict, b: dict) -> bool:
    a, b = a["parts"], b["parts"]
    return all(torch.equal(a[part][name], b[part][name]) for part in ("model", "ema") for name in a[part])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(out=run, **TINY)
    return run


def test_a_run_leaves_a_checkpoint_a_log_and_events(whole: Path) -> None:
    model = load(whole)
    assert model.config.n_steps == 2 and len(model.config.classes) == 20 and model.origin.data == "shapes-easy:256"
    lines = [json.loads(line) for line in (whole / "train.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if "top1" in line] == [8, 16]
    assert model.origin.metrics["top1"] == max(line["top1"] for line in lines if "top1" in line)
    assert list(whole.glob("events.out.tfevents.*"))
    assert not list(whole.glob(".*tmp"))


def test_training_changes_the_weights_and_init_rebuilds_the_first_ones(whole: Path) -> None:
    trained, untrained = load(whole, "raw").state_dict(), load(whole, "init").state_dict()
    assert not torch.equal(trained["head.weight"], untrained["head.weight"])


def test_a_killed_run_resumes_to_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of update 11, with a state saved after every update."""
    script = f"""
import os, signal
from pathlib import Path
from models import loop, train as t
loop.SAVE_EVERY = 0
whole_update = t.Trainer.learn
def learn(self, update, *batch):
    loss = whole_update(self, update, *batch)
    if update == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss
t.Trainer.learn = learn
t.train(out=Path({str(tmp_path / "run")!r}), **{TINY!r})
"""
    killed = python("-c", script)
    assert killed.returncode == -9, killed.stderr
    assert state(tmp_path / "run")["update"] == 11
    train(out=tmp_path / "run", resume=True, **TINY)
    assert same(state(tmp_path / "run"), state(whole))
    assert (tmp_path / "run" / "train.jsonl").read_text().count("\n") == (whole / "train.jsonl").read_text().count("\n")


def test_sittings_end_in_the_same_weights(whole: Path, tmp_path: Path) -> None:
    for updates in (5, 6, None):
        train(out=tmp_path / "run", resume=True, stop_after=updates, **TINY)
    assert same(state(tmp_path / "run"), state(whole))


def test_loading_processes_do_not_change_the_result(whole: Path, tmp_path: Path) -> None:
    train(out=tmp_path / "run", **(TINY | {"workers": 2}))
    assert same(state(tmp_path / "run"), state(whole))


def test_a_run_is_not_overwritten_nor_resumed_with_other_options(whole: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        train(out=whole, **TINY)
    with pytest.raises(InputError, match="epochs=2.0"):
        train(out=whole, resume=True, **(TINY | {"epochs": 3.0}))
    train(out=whole, resume=True, **TINY)  # finished: nothing to do


def test_starting_over_leaves_no_result_of_the_old_model_and_nothing_but_ours_is_touched(tmp_path: Path) -> None:
    train(out=tmp_path / "run", **(TINY | {"epochs": 1.0}))
    before = (tmp_path / "run" / "ckpt.pt").read_bytes()
    for name in ("rank.nc", "notes.txt", "prune notes.txt"):
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(InputError, match=r"rank\.nc; move or remove"):
        train(out=tmp_path / "run", force=True, **(TINY | {"epochs": 1.0}))
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() == before
    (tmp_path / "run" / "rank.nc").unlink()
    train(out=tmp_path / "run", force=True, seed=1, **(TINY | {"epochs": 1.0}))
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() != before
    assert (tmp_path / "run" / "notes.txt").read_text() == (tmp_path / "run" / "prune notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong",
    [
        dict(data="folder:nowhere"),
        dict(model="bvit_huge"),
        dict(fields=("d_model=15",)),
        dict(device="gpu"),
        dict(batch_size=10**6),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_force_removes_anything(whole: Path, tmp_path: Path, wrong: dict) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(InputError):
        train(out=tmp_path / "run", force=True, **(TINY | wrong))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another live process"):
        train(out=tmp_path, **TINY)


def test_the_stacked_baseline_trains_with_the_same_command(tmp_path: Path) -> None:
    train(
        out=tmp_path / "run",
        **(TINY | {"model": "vit_easy", "fields": ("d_model=16", "n_heads=2", "n_steps=2"), "epochs": 1.0}),
    )
    assert load(tmp_path / "run").config.n_blocks == 2


def test_growing_runs_from_two_steps_to_all(tmp_path: Path) -> None:
    options = TINY | {"fields": ("n_steps=6", "d_model=16", "n_heads=2"), "grow": 0.5}
    trainer = Trainer(Options(**{k: v for k, v in options.items() if k not in ("workers", "device")}), tmp_path, "cpu")
    steps = [trainer.n_steps(update) for update in range(trainer.updates)]
    assert steps[0] == 2 and steps == sorted(steps) and set(steps[trainer.updates // 2 :]) == {6}


# What `torchrun --standalone --nproc-per-node 2 -m models.train` does, with forked processes
TORCHRUN = """
import runpy
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                      run_id="standalone", start_method="fork")
def train():
    runpy.run_module("models.train", run_name="__main__", alter_sys=True)
elastic_launch(launch, train)()
"""


def test_two_processes_train_with_the_same_loss(tmp_path: Path) -> None:
    """DDP under torchrun: the logged losses equal those of one process to rounding (no drop path, which is random per
    process).

    Muon orthogonalises its updates in bfloat16, which amplifies the rounding of gradients summed in another order:
    1e-4 of the loss.
    """
    options = shlex.split("--data shapes-easy:256 --model bvit_easy --fields d_model=16 n_heads=2 n_steps=2 --epochs 1")
    options += shlex.split("--batch-size 32 --val-limit 64 --workers 0 --device cpu")
    losses = []
    for n, launch in enumerate((["-m", "models.train"], ["-c", TORCHRUN])):
        run = tmp_path / str(n)
        done = python(*launch, *options, "--out", run)
        assert done.returncode == 0, done.stderr
        losses.append([json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()])
    assert len(losses[0]) > 1 and any("loss" in line for line in losses[0])
    for one, two in zip(*losses, strict=True):
        assert one["update"] == two["update"]
        for name in ("loss", "val_loss"):
            if name in one:
                assert one[name] == pytest.approx(two[name], rel=1e-4)


def photographs(folder: Path) -> Path:
    """Class folders of tiny pictures: two classes, 16 pictures each, train and val."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (folder / split / name).mkdir(parents=True)
            for i in range(16):
                Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(
                    folder / split / name / f"{i}.png"
                )
    return folder


PHOTOS = dict(
    model="bvit_easy",
    fields=("d_model=16", "n_heads=2", "n_steps=2"),
    recipe="small",
    epochs=1.0,
    batch_size=16,
    lr=None,
    grow=0.0,
    seed=0,
    val_limit=64,
    precision="auto",
)


def test_photographs_train_with_mixing_and_randaugment(tmp_path: Path) -> None:
    """The `small` and `deit` recipes on class folders of tiny pictures."""
    folder = photographs(tmp_path / "photos")
    for recipe in ("small", "deit"):
        run = tmp_path / recipe
        train(**(PHOTOS | dict(data=f"folder:{folder}", recipe=recipe, out=run, workers=0, device="cpu")))
        assert load(run).config.classes == ("n01", "n02")
        assert load(run).config.drop_path == 0.1


class Watched(torch.utils.data.Dataset):
    """A data set that notes which items are asked for."""

    def __init__(self, data, seen: list[int]):
        self.data, self.labels, self.seen = data, data.labels, seen

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        self.seen.append(index)
        return self.data[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model="bvit_huge"), "no preset named 'bvit_huge'"),
        (dict(fields=("d_model",)), "name=value"),
        (dict(fields=("d_model=15",)), "multiple of n_heads"),
        (dict(fields=("widht=15",)), "no field widht"),
        (dict(batch_size=1000), "fewer than one batch"),
        (dict(device="cuda"), "no CUDA device"),
        (dict(device="gpu"), "--device is 'gpu', not auto, cpu, cuda or mps"),
        (dict(fields=("d_model=wide",)), "d_model is 'wide', it must be a whole number"),
        (dict(epochs=0.0), "--epochs is 0.0"),
        (dict(epochs=math.nan), "--epochs is nan"),
        (dict(lr=0.0), "--lr is 0.0"),
        (dict(lr=-1.0), "--lr is -1.0"),
        (dict(grow=50.0), "--grow is 50.0"),
        (dict(batch_size=0), "--batch-size is 0"),
        (dict(batch_size=15, recipe="small"), "mixes images in pairs"),
        (dict(val_limit=0), "--val-limit is 0"),
        (dict(seed=-1), "--seed is -1"),
        (dict(workers=-1), "--workers is -1"),
        (dict(workers=100_000), "--workers is 100000, it must lie between 0 and 256"),
        (dict(fields=("n_classes=3",)), "--fields: n_classes is what the data says, leave it out"),
        (dict(fields=("d_model=" + 5000 * "9",)), r"d_model is '99+\.\.\.9+', it must be a whole number"),
        (dict(stop_after=0), "--stop-after is 0"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path: Path, change: dict, message: str) -> None:
    if change == dict(device="cuda") and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match=message):
        train(out=tmp_path / "run", **(TINY | change))


def test_each_repeat_of_an_image_is_augmented_anew(tmp_path: Path) -> None:
    """Repeated augmentation: three draws of each image in a batch, and the same three in any process and sitting."""
    folder = photographs(tmp_path / "photos")
    run = Trainer(Options(**PHOTOS, data=f"folder:{folder}"), tmp_path / "run", "cpu")
    run.recipe = replace(run.recipe, repeats=3, auto_augment=None, erasing=0.0)
    order = Order(len(run.train_data), run.recipe.batch_size, 0, repeats=3)
    epoch, indices, repeats = order.batch(0)
    keys = [(epoch, int(i), int(r)) for i, r in zip(indices, repeats, strict=True)]
    assert len(set(keys)) == len(keys) == run.recipe.batch_size and len({key[:2] for key in keys}) < len(keys)
    augmented = Augmented(run.train_data, run.recipe, run.model.config, 0)
    images = [image for image, _ in augmented.__getitems__(keys[:3])]
    assert keys[0][:2] == keys[1][:2] == keys[2][:2]
    assert not any(torch.equal(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(augmented.__getitems__(keys[1:2])[0][0], images[1])


def test_a_part_of_the_validation_split_holds_all_classes(tmp_path: Path) -> None:
    """val_limit images of sorted class folders: spread over the split, not its first classes."""
    folder = photographs(tmp_path / "photos")
    run = Trainer(Options(**(PHOTOS | dict(data=f"folder:{folder}", val_limit=4))), tmp_path / "run", "cpu")
    seen = []
    run.val_data = Watched(run.val_data, seen)
    run.evaluate()
    assert len(seen) == 4 and {run.val_data.labels[i] for i in seen} == {0, 1}


def test_a_run_that_diverges_keeps_no_broken_weights_and_goes_on_with_a_lower_rate(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("models.loop.SAVE_EVERY", -1.0)  # saves after every update
    monkeypatch.setattr("models.train.LOG_EVERY", 1)
    run, learn = tmp_path / "run", Trainer.learn

    def diverging(self: Trainer, update: int, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = learn(self, update, images, labels)
        if update == 10:  # after the first epoch was scored
            self.model.head.weight.data[0, 0] = torch.inf
            self.ema.module.head.weight.data[0, 0] = torch.inf
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", diverging)
        with pytest.raises(InputError, match=r"not finite .* lower the learning rate \(--lr\) and go on with --resume"):
            train(out=run, **(TINY | {"lr": 0.01}))
    assert state(run)["update"] == 10
    assert is_finite(state(run)) and is_finite(torch.load(run / "ckpt.pt", weights_only=True))
    train(out=run, resume=True, **(TINY | {"lr": 0.001}))
    assert state(run)["update"] == 16 and is_finite(state(run))


def test_a_lower_rate_may_resume_and_a_higher_one_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(out=run, stop_after=3, **(TINY | {"lr": 0.1}))
    with pytest.raises(InputError, match=r"lr=0.1 \(now 0.2\)"):
        train(out=run, resume=True, **(TINY | {"lr": 0.2}))
    train(out=run, resume=True, **(TINY | {"lr": 0.01}))
    assert max(line["lr"] for line in read_log(run / "train.jsonl") if line["update"] > 3 and "lr" in line) <= 0.01


def test_a_torn_log_loses_its_torn_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(out=run, stop_after=8, **TINY)
    log = run / "train.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"update": 8, "im\n[1]\n{"update": "8"}\n\x00\n')
    train(out=run, resume=True, **TINY)
    assert log.read_text().startswith(whole) and len(read_log(log)) == log.read_text().count("\n")


def test_data_that_changed_between_two_sittings_is_refused(tmp_path: Path) -> None:
    folder, run = photographs(tmp_path / "photos"), tmp_path / "run"
    options = PHOTOS | dict(data=f"folder:{folder}", out=run, workers=0, device="cpu", epochs=4.0)
    train(**options, stop_after=2)
    for split in ("train", "val"):
        (folder / split / "n01").rename(folder / split / "n09")
    with pytest.raises(InputError, match=r"classes=\['n01', 'n02'\] \(now \['n02', 'n09'\]\)"):
        train(**options, resume=True)
    for split in ("train", "val"):
        (folder / split / "n09").rename(folder / split / "n01")
    (folder / "train" / "n01" / "0.png").unlink()
    with pytest.raises(InputError, match="images="):
        train(**options, resume=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_counted_and_its_place_taken(tmp_path: Path, workers: int, capsys) -> None:
    folder, run = photographs(tmp_path / "photos"), tmp_path / "run"
    (folder / "train" / "n01" / "3.png").write_bytes(b"broken")
    train(**(PHOTOS | dict(data=f"folder:{folder}", out=run, workers=workers, device="cpu", batch_size=32)))
    assert "left out 1 unreadable images: n01/3.png" in capsys.readouterr().err
    for name in range(4, 8):
        (folder / "train" / "n01" / f"{name}.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"more than 1 % of the 32 images"):
        train(**(PHOTOS | dict(data=f"folder:{folder}", out=tmp_path / "worse", workers=workers, device="cpu")))


def test_loading_processes_that_inherit_nothing_give_the_weights_of_forked_ones(tmp_path: Path) -> None:
    """As where processes are spawned, all they get of the data is what can be pickled."""
    options = PHOTOS | dict(data=f"folder:{photographs(tmp_path / 'photos')}", workers=1, device="cpu")
    train(**options, out=tmp_path / "forked")
    multiprocessing.set_start_method(SERVER.get_start_method(), force=True)
    try:
        train(**options, out=tmp_path / "fresh")
    finally:
        multiprocessing.set_start_method("fork", force=True)
    assert same(state(tmp_path / "fresh"), state(tmp_path / "forked"))
