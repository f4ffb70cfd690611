"""Run with: pytest tests/probes/test_outliers.py"""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import Dataset, Subset

from analyses import outliers as analysis
from models import checkpoint, open_data
from models.checkpoint import fresh
from models.errors import InputError
from probes import outliers as probe
from probes.methods import registers
from tests.probes.small import CONFIG, moved

SHAPES = {
    "bvit": {},
    "stacked": {"n_blocks": 3},
    "between": {"n_blocks": 2, "step_embedding": "learned", "n_registers": 2, "layer_scale": 0.5, "norm": "rms"},
    "mean": {"pool": "mean"},
}


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(24))


def opened(data) -> torch.Tensor:
    return torch.stack([data[i][0] for i in range(len(data))])


# A planted outlier


class Spots(Dataset):
    """Dark images with one bright patch, which is the object."""

    spec, split, classes, fingerprint, has_masks, image_size = "spots", "val", ("a", "b"), "0", True, 32

    def __init__(self, n: int):
        self.place, self.labels = np.arange(n) * 7 % 16, np.arange(n) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        row, column = divmod(int(self.place[i]), 4)
        spot = torch.zeros(32, 32)
        spot[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
        return spot.expand(3, 32, 32), int(self.labels[i]), (spot * (self.labels[i] + 1)).long()


@pytest.fixture(scope="module")
def planted():
    """Neuron 5 answers a bright patch, whose norm is twice that of others, with a long vector; nothing else acts."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, patch_size=8, n_classes=2, classes=("a", "b"))
    model = fresh(config, 0).eval()
    with torch.no_grad():
        block = model.core[0]
        for parameter in (*block.attn.parameters(), *block.mlp.parameters(), *model.patch_embed.parameters()):
            parameter.zero_()
        model.patch_embed.proj.weight[0] = 4 / (3 * 64)
        model.pos_embed.normal_(std=0.5)
        model.pos_embed[..., 0] = 0
        block.mlp.fc1.weight[5, 0], block.mlp.fc1.bias[5], block.mlp.fc2.weight[3, 5] = 10, -20, 1
    return model


def test_a_planted_outlier_is_found_and_moves_to_the_register_with_its_neuron(planted) -> None:
    result = probe.measure(planted, Spots(64), neurons=1, batch_size=10)
    untouched = result.sel(condition="untouched", times=3)
    assert np.allclose(untouched["share"], [0, 1 / 16, 1 / 16, 1 / 16])
    assert (untouched["images"].values[1:] == 1).all() and (untouched["largest"].values[1:] > 4).all()
    assert int(result["chosen_neuron"][0]) == 5 and (result["on_object"] == 1).all()
    assert float(result["random_on_object"]) == pytest.approx(1 / 16)
    assert np.allclose(result["place"].sum(("row", "column")), 1) and float(result["place"].max()) < 0.2
    excess = result["parts"].sel(patch="largest")
    assert np.allclose(excess.sel(part="FFN"), result["adds"].sel(which="chosen", rank=0), atol=1e-5)
    assert (excess.sel(part="FFN").values[0] > 10) and np.allclose(excess.sel(part="attention"), 0, atol=1e-6)
    assert np.allclose(excess.sel(part="FFN")[1:], 0, atol=1e-5)  # the spot is no longer what the block sees of it
    assert abs(float(result["parts"].sel(patch="random", part="FFN", step=0))) < 3
    moved, random = (result.sel(condition=name, times=3) for name in ("register", "random register"))
    assert not moved["share"].any() and (moved["registers"].values[1:] > 4).all()
    assert np.allclose(random["share"], untouched["share"]) and (random["registers"].values < 1).all()
    assert not result["share"].sel(condition="silenced", times=3).any()
    assert analysis.has_outliers(result) and "some patches are above 3 times" in analysis.table(result)


# Against plain implementations


def by_hand(model, z: torch.Tensor, t: int, change=None) -> dict[str, torch.Tensor]:
    """A step of a state written out; `change` may change the neurons' activations."""
    block, embedding = model.core[model.config.block_of(t)], model.step_embedding(t)
    z = z if embedding is None else z + embedding
    gamma = [1 if gamma is None else gamma for gamma in (block.gamma1, block.gamma2)]
    qkv = functional.linear(block.norm1(z), block.attn.qkv.weight, block.attn.qkv.bias)
    q, k, v = qkv.unflatten(-1, (3, model.config.n_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v
    attention = block.attn.proj(mixed.transpose(1, 2).flatten(2)) * gamma[0]
    post = functional.gelu(block.mlp.fc1(block.norm2(z + attention)))
    post = post if change is None else change(post)
    ffn = block.mlp.fc2(post) * gamma[1]
    return {"stream": z, "attention": attention, "FFN": ffn, "post": post, "after": z + attention + ffn}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_parts_are_those_of_a_step_written_out_and_sum_to_the_difference_of_norms(data, changes) -> None:
    model, t = moved(data, **changes), 1
    result, images = probe.measure(model, data, batch_size=5, neurons=4), opened(data)
    _, measuring = probe.probe.split(probe.probe.as_pass(data), len(data))
    first, kept = model.config.n_prefix, {name: [] for name in ("excess", "FFN", "neuron")}
    neuron, block = (int(result[f"chosen_{name}"][0]) for name in ("neuron", "block"))
    with torch.no_grad():
        for image in images[measuring.data.indices]:
            step = by_hand(model, model(image[None], stop_at_step=t), t)
            norms = step["after"][0, first:].norm(dim=-1)
            at = int(norms.argmax())
            others = [i for i in range(len(norms)) if i != at]
            kept["excess"].append(norms[at] - norms[others].mean())
            direction = step["after"][0, first:] / norms[:, None]
            ffn = (step["FFN"][0, first:] * direction).sum(-1)
            kept["FFN"].append(ffn[at] - ffn[others].mean())
            written = model.core[model.config.block_of(t)].mlp.fc2.weight[:, neuron]
            written = written if block_gamma(model, t) is None else written * block_gamma(model, t)
            each = step["post"][0, first:, neuron] * (direction @ written)
            kept["neuron"].append(each[at] - each[others].mean())
    mean = {name: float(torch.stack(of).mean()) for name, of in kept.items()}
    parts = result["parts"].sel(patch="largest", step=t)
    assert float(parts.sum()) == pytest.approx(mean["excess"], abs=1e-4)
    assert float(parts.sel(part="FFN")) == pytest.approx(mean["FFN"], abs=1e-4)
    if block == model.config.block_of(t):
        assert float(result["adds"].sel(which="chosen", rank=0, step=t)) == pytest.approx(mean["neuron"], abs=1e-4)


def block_gamma(model, t: int) -> torch.Tensor | None:
    return model.core[model.config.block_of(t)].gamma2


@pytest.mark.parametrize("has_register", [True, False])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_register_at_test_time_is_that_of_steps_written_out(data, changes, has_register: bool) -> None:
    model, images = moved(data, **changes), opened(data)[:3]
    last_block = model.config.n_blocks - 1
    neurons = registers.Neurons(torch.tensor([0, 0, last_block]), torch.tensor([3, 7, 11]))
    p, patches = model.config.n_prefix, slice(model.config.n_prefix + has_register, None)
    with torch.no_grad():
        z = model.embed(images)
        if has_register:
            z = torch.cat([z[:, :p], torch.zeros(3, 1, 16), z[:, p:]], 1)
        found = list(registers.states(model, images, neurons, has_register=has_register))
        for t in range(3):

            def change(post: torch.Tensor, t: int = t) -> torch.Tensor:
                for block, neuron in zip(neurons.block.tolist(), neurons.neuron.tolist(), strict=True):
                    if block == model.config.block_of(t):
                        if has_register:
                            post[:, p, neuron] = post[:, patches, neuron].max(1).values
                        post[:, patches, neuron] = 0
                return post

            z = by_hand(model, z, t, change)["after"]
            assert torch.allclose(found[t + 1], z, atol=1e-4)


def test_a_model_with_registers_stands_beside_on_the_same_images(data, tmp_path) -> None:
    model, other = moved(data), moved(data, n_registers=2)
    sha256 = checkpoint.state_sha256(other.state_dict())
    checkpoint.save(tmp_path / "ckpt.pt", other, data="shapes-easy", init_sha256=sha256, provenance={"seed": 0})
    result = probe.measure(model, data, registered=str(tmp_path / "ckpt.pt"), control=moved(data), batch_size=7)
    alone = probe.measure(other, data)
    for name in ("largest", "share", "registers", "accuracy"):
        beside = result[name].sel(condition="trained registers")
        assert np.allclose(beside, alone[name].sel(condition="untouched"), atol=1e-5), name
    assert "trained with registers" in analysis.table(result) and len(analysis.figure(result).axes) >= 4
    checkpoint.save(tmp_path / "none.pt", model, data="shapes-easy", init_sha256=sha256, provenance={"seed": 0})
    with pytest.raises(InputError, match="has no registers"):
        probe.measure(model, data, registered=str(tmp_path / "none.pt"))
    with pytest.raises(InputError, match="differs in patch_size"):
        probe.measure(moved(data, patch_size=4), data, registered=str(tmp_path / "ckpt.pt"))


def test_batches_do_not_change_the_result(data) -> None:
    one, other = (probe.measure(moved(data), data, batch_size=size) for size in (12, 5))
    for name in one.data_vars:
        assert np.allclose(one[name], other[name], atol=1e-5, equal_nan=True), name


def test_without_masks_nothing_is_said_of_the_object(planted) -> None:
    class Plain(Spots):
        has_masks = False

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int, None]:
            return (*super().__getitem__(i)[:2], None)

    result = probe.measure(planted, Plain(12), times=4)
    assert "on_object" not in result and "only 6 images" in result.attrs["note"] and 4.0 in result["times"]
    assert "on the object: " not in analysis.table(result)


def test_what_cannot_be_measured_is_one_sentence(data) -> None:
    with pytest.raises(InputError, match="tells no classes apart"):
        probe.measure(fresh(dataclasses.replace(CONFIG, n_classes=0), 0), data)
    with pytest.raises(InputError, match="the model has one patch, which stands out from no other"):
        probe.measure(fresh(dataclasses.replace(CONFIG, patch_size=CONFIG.image_size), 0), data)
    for times in (1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"--times is {times}"):
            probe.measure(moved(data), data, times=times)
    with pytest.raises(InputError, match="--neurons is 0"):
        probe.measure(moved(data), data, neurons=0)


def test_a_model_of_zeros_has_a_table(data) -> None:
    model = moved(data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = probe.measure(model, data)
    assert result["largest"].isnull().all() and analysis.table(result) and analysis.figure(result).axes


def test_the_table_keeps_its_lines_short(data) -> None:
    result = probe.measure(moved(data), data, control=moved(data, norm="rms"), batch_size=12)
    table = analysis.table(result)
    assert "untrained" in table and "random patch" in table and all(len(line) <= 125 for line in table.splitlines())
    assert len(analysis.neuron_frame(result)) == 2 * result["written"].size
