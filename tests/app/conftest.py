"""A run with every result, small enough to make for a test; and a dashboard that serves it."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from streamlit.testing.v1 import AppTest
from torch.utils.data import Subset

from app import page
from models import ViTConfig, load, open_data
from models.checkpoint import fresh, save, state_sha256
from models.run_folder import result as file_of
from probes import (
    ablation,
    attribution,
    cost,
    dictionary,
    dynamics,
    factors,
    intervention,
    lens,
    neurons,
    outliers,
    patching,
    pointing_game,
    rank,
    recurrence,
    saving,
    trajectories,
    transfer,
)
from probes.methods import rounds
from probes.methods.plan import Plan

from .visits import MAIN, PATIENCE, VIEWS, turned_to

ROOT = Path(page.__file__).parents[1]
STUDY = """cell,groups,model,fields,seed,lr,n_steps,n_blocks,d_model,n_classes,parameters,flops,top1
a,width;steps,bvit_easy,,0,0.004,12,1,64,20,57300,1000000,0.6
b,width;steps,bvit_easy,,1,0.004,12,1,64,20,57300,1000000,0.7
c,width,vit_easy,,0,0.004,12,12,64,20,600000,1000000,0.8
d,width,vit_easy,,1,0.004,12,12,64,20,600000,1000000,0.9
e,steps,bvit_easy,n_steps=4,0,0.004,4,1,64,20,57300,400000,0.5
"""


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory) -> Path:
    """A folder of runs that holds one, `tiny`, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            made = tmp_path_factory.mktemp("made")
            make_tiny(made / "runs" / "tiny")
            made.rename(shared)
    return shared / "runs"


def make_tiny(run: Path) -> None:
    """An untrained model of 3 steps and 2 heads, its log, and every probe's result on 40 images; beside it a study."""
    classes = tuple(open_data("shapes-easy").classes)
    config = ViTConfig.preset("bvit_easy", n_steps=3, d_model=32, n_heads=2, n_classes=len(classes), classes=classes)
    model = fresh(config, 0)
    about = dict(init_sha256=state_sha256(model.state_dict()), metrics={"top1": 0.05}, provenance={"seed": 0})
    save(run / "ckpt.pt", model, ema=model.state_dict(), data="shapes-easy", **about)
    (run / "train.jsonl").write_text(
        '{"update": 1, "images": 64, "loss": 3.0}\n{"update": 2, "images": 128, "top1": 0.1}\n'
    )
    measure_all(run)
    prune_twice(run, config)
    (run.parent / "study").mkdir()
    (run.parent / "study" / "study.csv").write_text(STUDY)


def measure_all(run: Path) -> None:
    model = load(run)
    images, common = Subset(open_data("shapes-easy", like=model), range(40)), dict(control=model, batch_size=20)
    measured = {
        "pointing_game": pointing_game.measure(model, images, **common),
        "neurons": neurons.measure(model, images, top=2, iterations=2, copies=1, n_top=3, **common),
        "rank": rank.measure(model, images, accuracy_images=20, **common),
        "trajectories": trajectories.measure(model, images, **common),
        "recurrence": recurrence.measure(model, images, **common),
        "ablation": ablation.measure(model, images, images=20, **common),
        "attribution": attribution.measure(model, images, images=20, exact=4, points=2, checked=4, **common),
        "patching": patching.measure(model, images, pairs=3, maps=1, shifts=2, _right=False, **common),
        "intervention": intervention.measure(model, images, images=20, max_steps=4, **common),
        "lens": lens.measure(model, images, updates=3, jacobian_images=2, **common),
        "dictionary": dictionary.measure(model, images, updates=3, k=2, effects=2, **common),
        "dynamics": dynamics.measure(
            model, images, sample=8, max_steps=6, jacobian_images=1, state_images=1, probes=2, iterations=4, **common
        ),
        "factors": factors.measure(model, images, **common),
        "outliers": outliers.measure(model, images, **common),
        "cost": cost.measure(model, images, rounds=1, batch_size=2),
        "transfer": transfer.measure(model, images, seeds=2, epochs=1, train_batch=20, _train=images, **common),
    }
    for name in ("gradient", "chefer", "rollout"):
        measured[f"pointing_game.{name}"] = pointing_game.measure(model, images, map=name, **common)
    for name, result in measured.items():
        saving.save(result, file_of(run, name))


def prune_twice(run: Path, config: ViTConfig) -> None:
    """Two rounds of pruning and two controls, elsewhere; the results are put into the run."""
    data = (open_data("shapes-easy:16", split, like=config) for split in ("train", "val"))
    plan = Plan(rounds=2, epochs=1, graft_epochs=1, batch_size=16, replicates=2)
    lottery = rounds.Lottery(fresh(config, 0), *data, plan, run / "lottery", 40)
    lottery.play()
    for name in ("swap", "random"):
        lottery.control(name)
    for path in (run / "lottery").glob("*.nc"):
        shutil.move(path, run / path.name)
    shutil.rmtree(run / "lottery")


@pytest.fixture
def runs(tiny_runs, tmp_path) -> Path:
    """A copy of the tiny run to break."""
    return Path(shutil.copytree(tiny_runs, tmp_path / "runs"))


@pytest.fixture
def opened(monkeypatch) -> Callable[..., AppTest]:
    """Opens a page of the dashboard on a folder of runs, as a link with these parameters does."""

    # every AppTest looks for components through all packages installed, which takes longer than a page
    monkeypatch.setattr("streamlit.components.v2.manifest_scanner.scan_component_manifests", list, raising=False)

    def visit(runs: Path, view: str = VIEWS[0], **link: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(runs)])
        app = AppTest.from_file(str(MAIN), default_timeout=PATIENCE)
        app.query_params |= {name: str(value) for name, value in link.items()}
        return app.run() if view == VIEWS[0] else turned_to(app, view)

    return visit


class Served:
    """A dashboard started by a command of Python's: what it printed, and the address that it says it has."""

    def __init__(self, *words: object, cwd: Path = ROOT):
        command, pipe = [sys.executable, *map(str, words)], subprocess.PIPE
        here = os.environ | {"PYTHONPATH": str(ROOT)}  # not a copy that is installed
        self.process = subprocess.Popen(command, cwd=cwd, env=here, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        self.reader = threading.Thread(target=self.process.stdout.read)  # so that it never waits for us to listen
        self.lines: list[str] = []

    def address(self) -> str:
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://\S+", line):
                self.reader.start()
                return found[0]
        raise AssertionError(f"the dashboard named no address: {''.join(self.lines)}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)  # it may still be starting
        if self.reader.is_alive():
            self.reader.join()
        self.process.stdout.close()


SERVED = """
import threading
import time
from etils import epy
from models.block import Block
from streamlit.web import cli

def before_visitors():
    assert threading.current_thread() is threading.main_thread(), "one visitor's lazy imports reach into another's"
    return lazy_imports()

lazy_imports, quick = epy.lazy_imports, Block.forward
epy.lazy_imports = before_visitors
Block.forward = lambda *words, **options: time.sleep(0.03) or quick(*words, **options)
cli.main()
"""


@pytest.fixture(scope="session")
def served(tiny_runs) -> Iterator[str]:
    """The address of a dashboard on the tiny run, started by ``streamlit run`` from anywhere; the model takes its time,
    so that visitors meet in it.
    """
    script, options = ROOT / "app" / "main.py", ("--server.headless", "true", "--", "--runs", tiny_runs)
    dashboard = Served("-c", SERVED, "run", script, *options, cwd=tiny_runs)
    try:
        yield dashboard.address()
    finally:
        dashboard.stop()
