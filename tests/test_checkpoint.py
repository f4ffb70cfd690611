"""Run with: pytest tests/test_checkpoint.py"""

import errno
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from models import ViTConfig, checkpoint, load, masks, origin
from models.errors import InputError

CONFIG = ViTConfig.preset("bvit_easy", n_steps=2, d_model=16, n_heads=2, n_classes=3, classes=("a", "b", "c"))


@pytest.fixture
def run(tmp_path) -> Path:
    model = checkpoint.fresh(CONFIG, 5)
    first = checkpoint.state_sha256(model.state_dict())
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    ema = {name: value + 1 for name, value in model.state_dict().items()}
    checkpoint.save(
        tmp_path / "ckpt.pt",
        model,
        ema=ema,
        data="shapes-easy",
        metrics={"top1": 0.5},
        init_sha256=first,
        provenance={"seed": 5},
    )
    return tmp_path


def test_ema_raw_and_init(run) -> None:
    fresh = checkpoint.fresh(CONFIG, 5).state_dict()
    for weights, shift in (("ema", 2.0), ("raw", 1.0), ("init", 0.0)):
        model = load(run, weights)
        state = model.state_dict()
        assert state.keys() == fresh.keys()
        for name, value in state.items():
            assert torch.allclose(value, fresh[name] + shift, atol=1e-6), name
        if weights == "init":  # drawn anew, to the bit
            assert all(torch.equal(value, fresh[name]) for name, value in state.items())
        assert model.config == CONFIG and not model.training
        assert model.origin.weights == weights and model.origin.data == "shapes-easy"


def test_without_ema_the_raw_weights_are_taken_and_said(tmp_path) -> None:
    checkpoint.save(tmp_path / "ckpt.pt", checkpoint.fresh(CONFIG, 0), provenance={"seed": 0})
    assert load(tmp_path / "ckpt.pt").origin.weights == "raw"


def test_half_precision_is_read_as_float32(run) -> None:
    model = load(run)
    checkpoint.save(run / "half.pt", model, dtype=torch.float16, provenance={"seed": 5})
    half = load(run / "half.pt")
    assert half.head.weight.dtype == torch.float32 and torch.allclose(half.head.weight, model.head.weight, atol=2e-3)


def test_init_is_refused_where_it_cannot_be_rebuilt(run) -> None:
    content = torch.load(run / "ckpt.pt", weights_only=True)
    torch.save(content | {"init_sha256": "0" * 64}, run / "ckpt.pt")
    with pytest.raises(InputError, match="cannot be rebuilt"):
        load(run, "init")


class Bomb:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_does_not(tmp_path) -> None:
    for name, write in (("zip.pt", torch.save), ("plain.pt", lambda obj, path: path.write_bytes(pickle.dumps(obj)))):
        write({"format": Bomb(tmp_path / "pwned")}, tmp_path / name)
        with pytest.raises(InputError, match=name):
            load(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"format": "other"}, "not a checkpoint of this toolkit"),
        ({"config": {"widht": 3}}, "no field widht"),
        ({"weights": {}, "ema": None}, "do not fit"),
        ({"config": [1]}, "damaged: its config"),
        ({"config": {3: 4}}, "damaged: its config"),
        ({"config": CONFIG.to_dict() | {"n_blocks": 2}}, "1 blocks, n_blocks is 2"),
        ({"config": CONFIG.to_dict() | {"d_mlp": 10**6}}, r"core.0.mlp.fc1.bias is \(64,\), it should be \(1000000,\)"),
        ({"config": CONFIG.to_dict() | {"n_steps": 10**9}}, "n_steps is 1000000000"),
        ({"config": CONFIG.to_dict() | {"n_heads": "2"}}, "n_heads is '2', it must be a whole number"),
        ({"config": CONFIG.to_dict() | {"std": [0, 0, 0]}}, "three numbers above 0"),
        ({"config": CONFIG.to_dict() | {"classes": "abc"}}, "a list of names"),
        ({"data": 3}, "damaged: its data"),
        ({"metrics": None}, "damaged: its metrics"),
        ({"provenance": {"seed": -1}}, "damaged: its seed"),
        ({"ema": {"head.weight": "x"}}, "head.weight among its ema is no plain tensor"),
        ({"ema": {"head.weight": torch.zeros(1, device="meta")}}, "head.weight among its ema is no plain tensor"),
        ({"ema": {"head.weight": torch.zeros(1).expand(10**6, 10**6)}}, "larger than the file"),
        ({"masks": "all"}, "damaged: its masks"),
        ({"masks": torch.ones(2, 5)}, "masks among its masks is no plain tensor"),
    ],
)
def test_a_wrong_checkpoint_is_one_sentence(run, change, message) -> None:
    torch.save(torch.load(run / "ckpt.pt", weights_only=True) | change, run / "ckpt.pt")
    with pytest.raises(InputError, match=message):
        load(run)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", None])
def test_an_unreadable_file_is_one_sentence(run, content) -> None:
    path = run / "ckpt.pt"
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(InputError, match=r"ckpt\.pt"):
        load(run)


def test_a_missing_file_or_folder_says_what_to_do(tmp_path) -> None:
    with pytest.raises(InputError, match="models.train"):
        load(tmp_path)
    with pytest.raises(InputError, match="there is no file or folder"):
        load(tmp_path / "none.pt")
    for strange in (300 * "x", "~nobody-at-all/run", "a\0b"):
        with pytest.raises(InputError, match="there is no file or folder"):
            load(strange)
    with pytest.raises(InputError, match="not ema, raw or init"):
        load(tmp_path, "best")


def test_a_full_disk_leaves_what_was_there(run, monkeypatch) -> None:
    before = (run / "ckpt.pt").read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.save(run / "ckpt.pt", checkpoint.fresh(CONFIG, 0))
    assert error.value.filename == str(run / "ckpt.pt")
    assert (run / "ckpt.pt").read_bytes() == before and [p.name for p in run.iterdir()] == ["ckpt.pt"]


def test_no_absolute_path_in_a_command() -> None:
    here = Path.cwd()
    assert origin.relative(str(here / "runs" / "x")) == "runs/x"
    assert origin.relative("/elsewhere/data/photos") == "photos"
    assert origin.relative("folder:/elsewhere/photos") == "folder:photos"
    assert origin.relative("timm:vit@/elsewhere/file.pth") == "timm:vit@file.pth"
    assert origin.relative("imagenet-s:/a/masks@/b/imagenet") == "imagenet-s:masks@imagenet"
    assert origin.relative("list:/a/lists/{split}.txt") == "list:{split}.txt"
    assert origin.relative("wds/name:/a/shards?image=jpg&mask=png") == "wds/name:shards?image=jpg&mask=png"
    assert origin.relative(f"imagenet-s:{here}/m@{here}/i") == "imagenet-s:m@i"
    assert origin.relative("--runs=/elsewhere/runs") == "--runs=runs"
    assert origin.relative("--epochs") == "--epochs"


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


def test_a_flipped_bit_never_gives_other_weights(run) -> None:
    """In the weights it is a checksum that differs; elsewhere, in what nobody reads, nothing changes."""
    whole = (run / "ckpt.pt").read_bytes()
    expected = checkpoint.state_sha256(load(run).state_dict())
    refused = 0
    for place in range(7, len(whole), len(whole) // 60):
        flipped(run / "ckpt.pt", place)
        try:
            assert checkpoint.state_sha256(load(run).state_dict()) == expected
        except InputError as error:
            assert "ckpt.pt" in str(error)
            refused += 1
        (run / "ckpt.pt").write_bytes(whole)
    assert refused > 30


def test_weights_that_are_not_those_that_were_saved_are_refused(run) -> None:
    """Packed anew, so that the archive's checksums are right."""
    content = torch.load(run / "ckpt.pt", weights_only=True)
    content["ema"]["head.weight"][0, 0] += 1
    torch.save(content, run / "ckpt.pt")
    with pytest.raises(InputError, match="its ema are not those that were saved"):
        load(run)
    del content["sha256"]  # a file of an earlier version
    torch.save(content, run / "ckpt.pt")
    assert load(run).head.weight[0, 0] == content["ema"]["head.weight"][0, 0]


def test_an_archive_that_would_grow_is_not_opened(run) -> None:
    with zipfile.ZipFile(run / "ckpt.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(run / "ckpt.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(InputError, match="packed, which torch's files are not"):
        load(run)


def test_masks_of_another_length_are_refused(run) -> None:
    model = load(run)
    n = sum(masks.sizes(CONFIG).values())
    checkpoint.save(run / "ckpt.pt", masks.put_on(model, torch.ones(2, n, dtype=torch.bool)), provenance={"seed": 5})
    content = torch.load(run / "ckpt.pt", weights_only=True)
    assert masks.taken_from(load(run)).all()
    torch.save(content | {"sha256": {}}, run / "ckpt.pt")
    with pytest.raises(InputError, match="are not those that were saved"):
        load(run)
    del content["sha256"]
    for wrong in (content["masks"][:, :-1], content["masks"][:1]):
        torch.save(content | {"masks": wrong.clone()}, run / "ckpt.pt")
        with pytest.raises(InputError, match=r"ckpt.pt: masks are uint8 \[\d, \d+\], those of this model are uint8"):
            load(run)


def test_no_weight_is_read_before_its_shape_is_known_to_fit(run, monkeypatch) -> None:
    content = torch.load(run / "ckpt.pt", weights_only=True)
    torch.save(content | {"config": content["config"] | {"d_mlp": 32}}, run / "ckpt.pt")
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **kwargs: pytest.fail("a weight was read"))
    with pytest.raises(InputError, match="do not fit"):
        load(run)


def test_what_a_killed_writer_left_is_removed_by_the_next(run) -> None:
    left, alive, mine = (run / f".ckpt.pt.{process}.tmp" for process in (2**22 + 1, 1, "notes"))
    for path in (left, alive, mine):
        path.write_text("half")
    checkpoint.save(run / "ckpt.pt", load(run), provenance={"seed": 5})
    assert not left.exists() and alive.exists() and mine.exists()
