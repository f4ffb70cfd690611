"""The commands of README and docs, run to their end as they are written, on the shipped runs and with small limits.

What a command is about (its model, data, options) stays; only how much it does is turned down. Those that need weights
or data sets of other people are left out by name; that they are taken as written is tested in `test_commands`.
Run with: pytest tests/test_walkthrough.py
"""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_commands import ROOT, WHOLE

OF_PROBES = "--limit 4 --no-control "
LIMITS = {  # of what each may do here; for probes beside these
    "models.train": "--data shapes:16 --fields d_model=8 n_heads=2 --epochs 1 --batch-size 8 --val-limit 4 "
    "--out runs/first",
    "models.study": "--only bvit_easy,d_model=32*seed=0 --hours 0.0001",
    "models.verify": "",
    "analyses.study": "",
    "probes.ablation": "--images 2",
    "probes.attribution": "--images 2 --exact 2 --points 2 --checked 4",
    "probes.cost": "--rounds 1 --batch-size 2",
    "probes.dictionary": "--updates 2 --images 4 --effects 1",
    "probes.dynamics": "--limit 8 --sample 8 --max-steps 14 --jacobian-images 1 --state-images 1 --probes 2 "
    "--iterations 4",
    "probes.intervention": "--images 2",
    "probes.lens": "--updates 2 --jacobian-images 2",
    "probes.neurons": "--top 1 --iterations 2 --copies 1",
    "probes.patching": "--pairs 1 --maps 0 --shifts 1",
    "probes.prune": "--data shapes-easy:8 --val-limit 8 --steps 2 --epochs 1 --graft-epochs 1 --batch-size 8 "
    "--replicates 1 --fields d_model=8 n_heads=2 n_steps=2",
    "probes.rank": "--accuracy-images 4",
    "probes.recurrence": "--max-steps 13",
    "probes.trajectories": "--neighbors 2",
    "probes.transfer": "--epochs 1 --seeds 2 --train-batch 4 --train-limit 6",
}
ELSEWHERE = {  # why a command is not run here
    "imagenet": "ImageNet, and models of its size",
    "timm:": "weights from the hub",
    "imagenet-s:": "ImageNet-S",
    "--push": "an account on the hub",
    "--factor image": "the photographs that runs/photos was trained on",
    "--paper": "hours, whatever the limits",
    "runs/base": "a model trained on ImageNet",
    "mine": "the reader's own data",
}
HERE = [(module, rest) for module, rest in WHOLE if not any(word in rest for word in ELSEWHERE)]


def limited(module: str, rest: str) -> list[str]:
    """The words of a command with its limits; one that is typed twice is turned down where it stands."""
    words, options = shlex.split(rest), {}
    is_probe = module.startswith("probes.") and module != "probes.prune"
    for word in (OF_PROBES * is_probe + LIMITS.get(module, "")).split():
        if word.startswith("--"):
            options[word] = values = []
        else:
            values.append(word)
    for option, values in options.items():
        if option in words:
            words[words.index(option) + 1] = values[0]
        else:
            words += [option, *values]
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the commands name: the shipped runs without their results, photographs, studies."""
    root = tmp_path_factory.mktemp("walk")
    for name in ("demo", "demo-vit", "demo-te", "photos", "pruned", "pruned-16"):
        (root / "runs" / name).mkdir(parents=True)
        shutil.copy(ROOT / "runs" / name / "ckpt.pt", root / "runs" / name)
    shutil.copytree(ROOT / "runs" / "study", root / "runs" / "study")
    shutil.copytree(ROOT / "studies", root / "studies")
    photographs(root / "tin30", 3)
    return root


def photographs(root: Path, n_classes: int) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(4 * n_classes):
            path = root / split / "abc"[i % n_classes] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (70, 64, 3), np.uint8)).save(path)


@pytest.mark.parametrize(("module", "rest"), HERE, ids=[" ".join(command) for command in HERE])
def test_a_command_of_the_docs_does_what_it_says(module, rest, folder, monkeypatch, command) -> None:
    monkeypatch.chdir(folder)
    if "--control" in rest:
        assert command("probes.prune", *limited("probes.prune", ""))[0] == 0
    code, printed, said = command(module, *limited(module, rest))
    assert code == 0, said
    assert printed or "wrote" in said


def test_every_module_but_the_one_that_uploads_is_run() -> None:
    assert len(HERE) >= 28
    ran = {module for module, _ in HERE}
    assert {module for module, _ in WHOLE} - ran == {"models.share"}
