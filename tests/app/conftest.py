"""A run with every result, small enough to make for a test."""

import shutil
from pathlib import Path

import pytest
from torch.utils.data import Subset

from models import ViTConfig, open_data
from models.checkpoint import fresh, save
from probes import neurons, pointing_game, probe, prune, rank, recurrence, trajectories


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory) -> Path:
    """A folder of runs that holds one, `tiny`: an untrained model of 3 steps and 2 heads, its log, and every probe's
    result on 40 images.
    """
    run = tmp_path_factory.mktemp("runs") / "tiny"
    classes = tuple(open_data("shapes-easy").classes)
    config = ViTConfig.preset("bvit_easy", n_steps=3, d_model=32, n_heads=2, n_classes=len(classes), classes=classes)
    save(run / "ckpt.pt", fresh(config, 0), data="shapes-easy", metrics={"top1": 0.05}, provenance={"seed": 0})
    (run / "train.jsonl").write_text(
        '{"update": 1, "images": 64, "loss": 3.0}\n{"update": 2, "images": 128, "top1": 0.1}\n'
    )
    model = load(run)
    images, options = Subset(open_data("shapes-easy", like=model), range(40)), dict(control=model, batch_size=20)
    results = {
        "pointing_game": pointing_game.measure(model, images, **options),
        "neurons": neurons.measure(model, images, top=2, iterations=2, copies=1, n_top=3, **options),
        "rank": rank.measure(model, images, accuracy_images=20, **options),
        "trajectories": trajectories.measure(model, images, **options),
        "recurrence": recurrence.measure(model, images, **options),
    }
    for name, result in results.items():
        probe.save(result, run / f"{name}.nc")
    easy = dict(like=model)
    plan = prune.Plan(rounds=2, epochs=1, graft_epochs=1, batch_size=16, replicates=2)
    lottery = prune.Lottery(
        fresh(config, 0),
        open_data("shapes-easy:32", "train", **easy),
        open_data("shapes-easy:32", **easy),
        plan,
        run / "lottery",
        40,
    )
    lottery.model.origin = model.origin
    lottery.play()
    for name in ("swap", "random"):
        prune.finish_control(lottery, name, ())
    for path in (run / "lottery").glob("*.nc"):
        shutil.move(path, run / path.name)
    shutil.rmtree(run / "lottery")
    return run.parent
