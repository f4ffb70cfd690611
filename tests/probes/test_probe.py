"""A probe is a function: what it gets for it. Run with: pytest tests/probes/test_probe.py"""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import xarray as xr

from models import ViTConfig, checkpoint, load, open_data
from models.checkpoint import fresh
from models.errors import InputError, UnreadableImage
from probes import probe
from probes.probe import Pass

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)

LENGTH = '''
from etils import epy
from probes import probe

with epy.lazy_imports():
    import xarray as xr

@probe.measurement
def measure(model, images, *, scale: float = 1.0) -> xr.Dataset:
    """How long is the CLS state after each step?

    Args:
        scale: factor on the length.
    """
    def lengths(batch):
        _, cache = model.run_with_cache(batch.images, names_filter="blocks.*.hook_resid_post")
        return {"length": (("step", "image"), scale * cache.stack_activation("resid_post")[:, :, 0].norm(dim=-1))}

    return images.over(lengths).mean("image")

if __name__ == "__main__":
    probe.main(measure)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with an untrained model whose norms were changed."""
    model = fresh(ViTConfig.from_dict(CONFIG.to_dict() | {"classes": open_data("shapes-easy").classes}), 0)
    sha256 = checkpoint.state_sha256(model.state_dict())
    with torch.no_grad():
        model.core[0].mlp.fc2.bias.add_(1)
    folder = tmp_path_factory.mktemp("runs") / "mine"
    options = dict(data="shapes-easy", init_sha256=sha256, provenance={"seed": 0})
    checkpoint.save(folder / "ckpt.pt", model, **options)
    return folder


@pytest.fixture
def own_probe(tmp_path: Path, monkeypatch) -> str:
    """A user's ten lines in a package of the user's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "length.py").write_text(LENGTH)
    monkeypatch.syspath_prepend(tmp_path)
    return "mine.length"


def lengths_by_hand(model, n: int) -> list[float]:
    data = open_data("shapes-easy", like=model)
    z, lengths = model.embed(torch.stack([data[i * len(data) // n][0] for i in range(n)])), []
    with torch.no_grad():
        for t in range(3):
            z = model.run_steps(z, t, t + 1)
            lengths.append(float(z[:, 0].norm(dim=-1).mean()))
    return lengths


def test_ten_lines_get_help_a_command_a_control_a_result_a_table_and_a_figure(own_probe, run, tmp_path, command):
    code, text, _ = command(own_probe, "--help")
    words = " ".join(text.replace("│", " ").split())
    assert code == 0 and "How long is the CLS state" in words and "factor on the length" in words and "--limit" in words

    figure = tmp_path / "length.png"
    options = ("--scale", 2, "--limit", 10, "--batch-size", 4, "--device", "cpu", "--figure", figure)
    code, table, _ = command(own_probe, run, *options)
    assert code == 0 and "length" in table and "step 3 (blocks.2)" in table and figure.read_bytes()[:4] == b"\x89PNG"
    result = xr.load_dataset(run / "length.nc", engine="h5netcdf")
    assert np.allclose(result["length"], np.multiply(2, lengths_by_hand(load(run), 10)), rtol=1e-5)
    assert np.allclose(result["control_length"], np.multiply(2, lengths_by_hand(load(run, "init"), 10)), rtol=1e-5)
    assert not np.allclose(result["length"], result["control_length"], rtol=1e-2)
    assert result.attrs["checkpoint_sha256"] == load(run).origin.sha256 and result.attrs["n_images"] == 10
    assert str(tmp_path) not in json.dumps({k: str(v) for k, v in result.attrs.items()})


def test_a_bare_function_is_a_command_too(run, tmp_path, monkeypatch, command):
    (tmp_path / "bare.py").write_text(LENGTH.replace("@probe.measurement\n", ""))
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "bare.nc"
    code, table, _ = command("bare", run, "--limit", 4, "--device", "cpu", "--no-control", "--out", out)
    assert code == 0 and "length" in table
    assert set(xr.load_dataset(out, engine="h5netcdf")) == {"length"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--out", "{run}"), "a folder"),
        (("--out", "{run}/ckpt.pt"), "no result"),
        (("--out", "{run}/ckpt.pt/rank.nc"), "ckpt.pt is no folder"),
        (("--figure", "{run}/ckpt.pt/rank.png"), "--figure: "),
        (("--seed", "-1"), "--seed is -1"),
        (("--limit", "0"), "--limit is 0"),
        (("--batch-size", "0"), "batch size is 0"),
        (("--device", "gpu"), "--device is 'gpu'"),
        (("--figure", "x.bmp"), ".png"),
        (("--data", "nothing"), "no data set is called 'nothing'"),
    ],
)
def test_bad_options_are_one_sentence_before_any_measurement(own_probe, run, command, options, complaint):
    before = (run / "ckpt.pt").read_bytes()
    code, printed, said = command(own_probe, run, *(option.format(run=run) for option in options))
    assert code == 2 and complaint in said and printed == ""
    assert (run / "ckpt.pt").read_bytes() == before


class Numbered(torch.utils.data.Dataset):
    """Image i is full of the number i; `broken` ones cannot be read."""

    spec, split, classes, fingerprint, has_masks, image_size = "numbered", "val", ("a",), "f", False, 4

    def __init__(self, n: int, broken: tuple[int, ...] = ()):
        self.n, self.broken, self.labels = n, broken, np.zeros(n, int)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        if i in self.broken:
            raise UnreadableImage(f"image {i}", "it is broken")
        return torch.full((3, 4, 4), float(i)), 0, None


def test_a_model_that_trains_is_measured_as_it_answers_and_trains_on() -> None:
    model = fresh(ViTConfig.from_dict(CONFIG.to_dict() | {"drop_path": 0.5}), 0)
    images = torch.utils.data.Subset(open_data("shapes-easy", like=CONFIG), range(8))
    model.train()

    @probe.measurement
    def logits(model, images):
        return images.over(lambda batch: {"logit": (("image", "class"), model(batch.images))})

    measured = logits(model, images)["logit"].values
    assert np.array_equal(measured, logits(model.eval(), images)["logit"].values)
    modes = [part.training for part in model.train().modules()]
    logits(model, images)
    assert [part.training for part in model.modules()] == modes


def test_what_is_no_model_is_not_measured() -> None:
    measure = probe.measurement(lambda model, images: pytest.fail("it measured"))
    with pytest.raises(InputError, match="what is measured is a model, not a str; open one with models.load"):
        measure("runs/demo", Numbered(10))


@pytest.mark.parametrize(("option", "said"), [("batch_size", "the batch size is -1"), ("workers", "--workers is -1")])
def test_what_nothing_can_be_read_with_is_refused_before_any_work(option: str, said: str) -> None:
    measure = probe.measurement(lambda model, images: pytest.fail("it measured"))
    with pytest.raises(InputError, match=said):
        measure(None, Numbered(10), **{option: -1})


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_over_joins_along_image_and_sums_the_rest(batch_size: int) -> None:
    def read(batch):
        value = batch.images[:, 0, 0, 0]
        return {
            "value": ("image", value),
            "pair": (("k", "image"), torch.stack([value, -value])),
            "n": ((), len(value)),
            **{name: ((), 1.0) for name in "zyxabc"},
        }

    walked = Pass(Numbered(10), batch_size).over(read)
    assert walked["value"].values.tolist() == list(range(10)) == walked["position"].values.tolist()
    assert (walked["pair"].values[1] == -np.arange(10)).all() and int(walked["n"]) == 10
    assert list(walked.mean("image")) == ["value", "pair", "n", *"zyxabc"]  # in the same order every time


def test_over_may_leave_images_out_and_unreadable_ones_are_counted(capsys) -> None:
    def even(batch):
        keep = batch.index % 2 == 0
        return {"position": ("image", batch.index[keep]), "value": ("image", batch.images[keep, 0, 0, 0])}

    walked = Pass(Numbered(300, broken=(4, 7)), 8).over(even)
    assert walked["position"].values.tolist() == [i for i in range(0, 300, 2) if i != 4]
    assert walked["value"].values.tolist() == walked["position"].values.tolist()
    assert walked.attrs["n_unreadable"] == 2 and "image 4, image 7" in capsys.readouterr().err
    with pytest.raises(InputError, match="no image is left"):
        Pass(Numbered(4)).over(lambda batch: {"position": ("image", batch.index[:0]), "x": ("image", np.zeros(0))})


def test_a_notebook_hands_over_plain_data_and_what_it_likes_to_set() -> None:
    given = []

    @probe.measurement(control=["length"], lighter=dict(scale=3.0))
    def measure(model, images, *, scale: float = 1.0) -> xr.Dataset:
        given.append((model.origin.source, images.batch_size, images.seed, scale))
        return xr.Dataset({"length": ("step", [scale, 0, 0]), "other": ((), 1.0)})

    model, data = fresh(CONFIG, 0), torch.utils.data.Subset(open_data("shapes-easy", like=CONFIG), range(4))
    result = measure(model, data, control=model, scale=2.0, batch_size=3, seed=5)
    assert given == [("in memory", 3, 5, 2.0), ("in memory", 3, 5, 3.0)]
    assert float(result["length"][0]) == 2 and float(result["control_length"][0]) == 3
    assert "control_other" not in result
    assert result.attrs["source"] == "in memory" and len(result.attrs["checkpoint_sha256"]) == 64


def test_numbers_are_lists_of_numbers_or_all() -> None:
    assert probe.numbers("3,17") == [3, 17] and probe.numbers("all") is None
    for wrong in ("3;17", "", "³", "-1", "1,,2"):
        with pytest.raises(InputError, match="as in 3,17"):
            probe.numbers(wrong)


@probe.measurement
def unreached(model, images):
    """Never asked."""
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("core.1.attn.qkv.weight", r"not finite from step 2 \(blocks.1\) on: core.1.attn.qkv.weight is not"),
        ("pos_embed", "not finite from the embedding on: pos_embed is not"),
        ("head.bias", "not finite in the read-out: head.bias is not"),
    ],
)
def test_weights_that_are_not_finite_name_the_step_where_it_arises(name: str, message: str) -> None:
    model = fresh(ViTConfig.from_dict(CONFIG.to_dict() | {"n_blocks": 3}), 0)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = torch.nan
    with pytest.raises(InputError, match=message):
        unreached(model, open_data("shapes-easy:8"))


def test_a_probe_measures_in_single_precision_and_a_model_takes_images_of_any() -> None:
    data, model = open_data("shapes-easy:8"), fresh(CONFIG, 0).eval()
    images = data[0][0][None]
    expected = model(images)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        other = fresh(CONFIG, 0).eval().to(dtype)
        assert torch.allclose(other(images).float(), expected, atol=tolerance)
        with pytest.raises(InputError, match=rf"the model holds {dtype}, .* call model.float\(\) first"):
            unreached(other, data)


@pytest.mark.parametrize("name", ["ckpt.pt", "other.pt", "notes.txt"])
def test_a_result_is_not_written_over_what_is_none(own_probe, run, tmp_path, command, name: str) -> None:
    out = run / name if name == "ckpt.pt" else tmp_path / name
    if name == "notes.txt":
        out.write_text("mine")
    before = out.read_bytes() if out.exists() else None
    code, _, said = command(own_probe, run, "--limit", 4, "--out", out)
    assert code == 2 and "which is no result of a probe" in said
    assert (out.read_bytes() if out.exists() else None) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--data", ""), "the word after --data is empty"), (("--out", "-"), "a result is no text")],
)
def test_an_empty_word_and_a_dash_are_not_taken_for_something_else(own_probe, run, command, options, message) -> None:
    code, _, said = command(own_probe, run, "--limit", 4, *options)
    assert code == 2 and message in said


@pytest.mark.parametrize("options", [("--weights", "init"), ("--image-size", 64)])
def test_a_result_of_other_weights_or_size_is_not_written_over_unasked(own_probe, run, command, options) -> None:
    result = run / "length.nc"
    result.unlink(missing_ok=True)
    assert command(own_probe, run, "--limit", 4)[0] == 0 and command(own_probe, run, "--limit", 3)[0] == 0
    before = result.read_bytes()
    code, _, said = command(own_probe, run, "--limit", 4, *options)
    assert code == 2 and "length.nc holds what was measured on" in said and result.read_bytes() == before
    assert command(own_probe, run, "--limit", 4, *options, "--out", result)[0] == 0


def test_nor_is_one_of_other_weights_of_the_same_timm_model(own_probe, command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict(), f"{seed}.pth")
        words = (own_probe, f"timm:vit_tiny_patch16_224@{seed}.pth", "--data", "shapes-easy", "--limit", 2)
        code, _, said = command(*words)
        assert code == 2 * seed and ("length.nc holds what was measured on timm:" in said) is bool(seed)
