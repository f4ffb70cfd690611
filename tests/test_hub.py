"""A model as a repository, without a network: folders, a hub that is a folder, and one that does not answer.

Run with: pytest tests/test_hub.py
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard

from models import BViT, ViTConfig, checkpoint, hub, load, masks
from models.checkpoint import fresh, save
from models.errors import InputError

ROOT = Path(__file__).parents[1]
CONFIG = ViTConfig(
    n_steps=2, d_model=16, n_heads=2, image_size=16, patch_size=8, n_classes=3, classes=("a", "b", "c"), layer_scale=0.5
)
PROVENANCE = {"seed": 3, "command": "python -m models.train --data shapes", "versions": {"torch": "2.6"}}


def a_file(folder: Path, **more) -> Path:
    """A checkpoint in a run's folder."""
    model = fresh(CONFIG, 3)
    about = dict(data="shapes:100", metrics={"top1": 0.9634}, provenance=PROVENANCE)
    about |= dict(init_sha256=checkpoint.state_sha256(model.state_dict()))
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "ckpt.pt", model, **(about | more))
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16)


@pytest.fixture
def repository(tmp_path) -> Path:
    load(a_file(tmp_path / "run")).save_pretrained(tmp_path / "shared")
    return tmp_path / "shared"


@pytest.fixture
def online(repository, monkeypatch):
    """A hub that holds one repository, me/bvit."""

    def download(repo: str, name: str, **options) -> str:
        if repo != "me/bvit" or not (repository / name).is_file():
            raise FileNotFoundError(name)
        return str(repository / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download", lambda repo_id, filename, **o: download(repo_id, filename)
    )
    return repository


def test_what_was_saved_is_what_is_read(repository, images, tmp_path) -> None:
    assert {path.name for path in repository.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    ours = load(tmp_path / "run")
    for model in (BViT.from_pretrained(repository), load(repository), load(f"hf:{repository}")):
        assert torch.equal(model(images), ours(images)) and model.config == ours.config and not model.training
        assert model.origin.data == "shapes:100" and model.origin.metrics == {"top1": 0.9634}
        assert model.origin.run == repository
        assert model.origin.sha256 == checkpoint.state_sha256(ours.state_dict())


def test_masks_of_a_pruned_model_go_along(images, tmp_path) -> None:
    model = fresh(CONFIG, 0).eval()
    masks.put_on(model, torch.rand(2, sum(masks.sizes(CONFIG).values())) < 0.5)
    model.save_pretrained(tmp_path / "pruned")
    read = BViT.from_pretrained(tmp_path / "pruned")
    assert torch.equal(masks.taken_from(read), masks.taken_from(model)) and torch.equal(read(images), model(images))


def test_the_hub_is_read_with_and_without_a_checkpoint(online, images, tmp_path) -> None:
    model = load("hf:me/bvit")
    assert model.origin.source == "hf:me/bvit" and model.origin.run == Path("runs/me--bvit")
    assert torch.equal(model(images), load(tmp_path / "run")(images))
    assert torch.equal(BViT.from_pretrained("me/bvit")(images), model(images))
    with pytest.raises(InputError, match="holds the raw weights alone; init needs its ckpt.pt"):
        load("hf:me/bvit", "init")
    shutil.copy(tmp_path / "run" / "ckpt.pt", online / "ckpt.pt")
    assert load("hf:me/bvit", "init").origin.weights == "init"
    (online / "model.safetensors").unlink()
    assert torch.equal(load("hf:me/bvit")(images), model(images))
    with pytest.raises(InputError, match="hf:me/other: its .* cannot be fetched"):
        load("hf:me/other")


def other_class(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["head.weight"] = torch.zeros(4, 16)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    change(folder, lambda said: said["bvit_toolkit"].pop("state_sha256"))


def whole_numbers(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["cls_token"] = tensors["cls_token"].int()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    change(folder, lambda said: said["bvit_toolkit"].pop("state_sha256"))


def change(folder: Path, how) -> None:
    said = json.loads((folder / "config.json").read_text())
    how(said)
    (folder / "config.json").write_text(json.dumps(said))


def flipped(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 0x40
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flipped, "its weights are not those that were saved"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "is not readable as safetensors"),
        (other_class, "the weights do not fit the config"),
        (lambda folder: change(folder, lambda said: said.pop("bvit_toolkit")), "is no config of this toolkit"),
        (lambda folder: change(folder, lambda said: said.update(bvit_toolkit={"metrics": 3})), "is no config of this"),
        (
            lambda folder: change(folder, lambda said: said.update(norm_eps=10**400)),
            "norm_eps holds a number of 1329 bits",
        ),
        (
            lambda folder: change(folder, lambda said: said.update(mean=[10**400] * 3)),
            "mean holds a number of 1329 bits",
        ),
        (lambda folder: change(folder, lambda said: said.update(classes=["\ud800", "b", "c"])), "which is no text"),
        (lambda folder: change(folder, lambda said: said["bvit_toolkit"].update(data="a\0")), "is no config of this"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "is no config of this toolkit"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "is no config of this toolkit"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is no config of this toolkit"),
        (whole_numbers, "its cls_token is int32, no fractions"),
        (lambda folder: change(folder, lambda said: said.update(n_heads=3)), "not a multiple of n_heads"),
        (lambda folder: change(folder, lambda said: said.update(later=1)), "has no field later"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    ],
)
def test_what_is_damaged_is_one_sentence(damage, said, repository) -> None:
    damage(repository)
    with pytest.raises(InputError, match=re.escape(said)):
        BViT.from_pretrained(repository)


def test_the_card_says_what_was_trained_on_what_and_how_well(repository) -> None:
    card = ModelCard.load(repository / "README.md")
    assert card.data.pipeline_tag == "image-classification" and card.data.to_dict()["library_name"] == "bvit-toolkit"
    parameters = sum(value.numel() for value in fresh(CONFIG, 0).parameters())
    for said in ("1 block(s) applied 2 times", "`shapes:100`", "top1 0.9634", "MIT", f"{parameters:,} parameters"):
        assert said in card.text
    assert "`python -m models.train --data shapes`" in card.text


def test_a_strange_origin_stays_in_its_cell(tmp_path) -> None:
    said = dict(data="folder:/home/me/secret/cats", provenance={"command": "a | b `c`\n# d", "versions": [1]})
    load(a_file(tmp_path / "run", **said)).save_pretrained(tmp_path / "shared")
    card = ModelCard.load(tmp_path / "shared" / "README.md").text
    assert "`a / b 'c' # d`" in card and "secret" not in card and "/home" not in card
    assert "not known to the toolkit; say it here" in card
    assert "secret" not in (tmp_path / "shared" / "config.json").read_text()


# A run as a repository


def test_a_run_is_laid_out_with_its_results_and_figures(tmp_path, command) -> None:
    run = a_file(tmp_path / "run")
    (run / "rank.nc").write_bytes(b"a result")
    (run / "report" / "figures").mkdir(parents=True)
    (run / "report" / "figures" / "fig-4.png").write_bytes(b"a picture")
    code, out, _ = command("models.share", run, "--out", tmp_path / "out")
    assert code == 0 and "README.md, ckpt.pt, config.json, figures, model.safetensors, rank.nc" in out
    assert "![fig 4](figures/fig-4.png)" in (tmp_path / "out" / "README.md").read_text()
    assert load(tmp_path / "out", "init").origin.weights == "init"  # the checkpoint is what is read
    code, _, err = command("models.share", run, "--out", tmp_path / "out")
    assert code == 2 and "is not empty" in err
    code, _, err = command("models.share", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert code == 2 and not (tmp_path / "new").exists()


def test_what_lies_elsewhere_is_not_shared(tmp_path, command) -> None:
    run, secret = a_file(tmp_path / "run"), tmp_path / "secret"
    secret.write_text("secret")
    figures = run / "report" / "figures"
    figures.mkdir(parents=True)
    for link in (run / "rank.nc", run / "report" / "report.html", figures / "fig-1.png"):
        link.symlink_to(secret)
    (figures / "fig-2.png").mkdir()
    (figures / "fig-3](x) <b>.png").write_text("")
    (run / "cost.nc").mkdir()
    assert command("models.share", run, "--out", tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "ckpt.pt", "config.json", "model.safetensors")
    }


def test_a_place_or_a_name_that_will_not_do_is_refused_before_anything_is_written(tmp_path, command) -> None:
    run = a_file(tmp_path / "run")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for out in (run / "ckpt.pt" / "sub", tmp_path / "dangling"):
        code, _, err = command("models.share", run, "--out", out)
        assert code == 2 and "is no folder; choose another place" in err
    code, _, err = command("models.share", run, "--out", tmp_path / "out", "--push", "a/b/c")
    assert code == 2 and "--push" in err and not (tmp_path / "out").exists()
    alone = [sys.executable, "-m", "models.share", run, "--out", tmp_path / "out", "--push", "a/b/c"]
    said = subprocess.run(alone, capture_output=True, text=True, cwd=Path(__file__).parents[1])  # nothing imported yet
    assert said.returncode == 2 and "models.share: --push" in said.stderr and "Traceback" not in said.stderr
    code, _, err = command("models.share", run / "ckpt.pt", "--out", tmp_path / "out")
    assert code == 2 and "ckpt.pt is no folder of a run" in err and not (tmp_path / "out").exists()
    assert command("models.share", "a" * 300, "--out", tmp_path / "out")[0] == 2


def test_an_origin_of_more_than_plain_values_is_one_sentence(tmp_path) -> None:
    model = load(a_file(tmp_path / "run", metrics={"top1": torch.tensor(1.0)}))
    with pytest.raises(InputError, match="no plain values"):
        model.save_pretrained(tmp_path / "out")


def test_it_is_uploaded_where_that_is_asked_for(tmp_path, command, monkeypatch) -> None:
    sent = {}

    def upload(repo_id, folder_path, commit_message):
        sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url="https://hub/me/bvit")

    api = SimpleNamespace(create_repo=lambda repo, exist_ok: None, upload_folder=upload)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    run = a_file(tmp_path / "run")
    code, out, _ = command("models.share", run, "--out", tmp_path / "one", "--push", "me/bvit")
    assert code == 0 and "uploaded to https://hub/me/bvit" in out
    assert {"model.safetensors", "config.json", "README.md", "ckpt.pt"} <= sent["me/bvit"]
    monkeypatch.undo()  # and the hub does not answer
    code, _, err = command("models.share", run, "--out", tmp_path / "two", "--push", "me/bvit")
    assert code == 2 and "could not be written" in err and (tmp_path / "two" / "model.safetensors").is_file()


def test_the_version_is_said_alike_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
