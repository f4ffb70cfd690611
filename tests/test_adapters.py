"""Run with: pytest tests/test_adapters.py"""

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import ViTConfig, adapters, checkpoint, masks
from models.checkpoint import fresh
from models.errors import InputError
from models.hooks import MATRICES

CONFIG = ViTConfig(image_size=16, patch_size=8, d_model=16, n_heads=2, n_steps=3, n_classes=5, init="xavier")
SHAPES = {
    "bvit": {},
    "stacked": {"n_blocks": 3},
    "between": {"n_blocks": 2, "step_embedding": "learned", "n_registers": 2, "layer_scale": 0.5, "norm": "rms"},
}
BOTH = pytest.mark.parametrize("per_step", [False, True], ids=["one", "per step"])


def made(shape: str = "bvit", seed: int = 0):
    return fresh(ViTConfig.from_dict(CONFIG.to_dict() | SHAPES[shape]), seed).eval()


def moved(model):
    """Fresh adapters change nothing; these do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def adapted(shape: str = "bvit", per_step: bool = False, rank: int = 2):
    """A model with adapters that matter, the one it was made of, and peft's wrapper."""
    plain = made(shape)
    model = copy.deepcopy(plain)
    wrapper = adapters.add(model, rank, per_step=per_step)
    return moved(model), plain, wrapper


def factors(model, t: int, matrix: str) -> tuple[torch.Tensor, torch.Tensor]:
    """B [out rank] and A [rank in] of a matrix at a step, as peft keeps them."""
    layer = getattr(getattr(model.core[model.config.block_of(t)], dict(map(reversed, MATRICES))[matrix]), matrix)
    name = f"step{t}" if f"step{t}" in layer.lora_A else "default"
    return layer.lora_B[name].weight, layer.lora_A[name].weight


def unrolled(model, plain):
    """The same function as a stacked ViT whose block t holds W + B A of step t: no adapter in sight."""
    config = plain.config
    other = fresh(ViTConfig.from_dict(config.to_dict() | {"n_blocks": config.n_steps}), 1).eval()
    state = {name: value for name, value in plain.state_dict().items() if not name.startswith("core")}
    for t in range(config.n_steps):
        block = dict(plain.core[config.block_of(t)].state_dict())
        for part, matrix in MATRICES:
            b, a = factors(model, t, matrix)
            block[f"{part}.{matrix}.weight"] = block[f"{part}.{matrix}.weight"] + b @ a
        state |= {f"core.{t}.{name}": value for name, value in block.items()}
    other.load_state_dict(state)
    return other


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_a_fresh_adapter_is_the_model(shape: str, per_step: bool) -> None:
    model, images = made(shape), torch.randn(4, 3, 16, 16)
    expected = model(images)
    adapters.add(model, 3, per_step=per_step)
    assert torch.equal(model(images), expected)


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapted_model_is_the_stacked_model_of_its_sums(shape: str, per_step: bool) -> None:
    model, plain, _ = adapted(shape, per_step)
    images, expected = torch.randn(4, 3, 16, 16), unrolled(model, plain)
    assert torch.allclose(model(images), expected(images), atol=1e-5)
    assert not torch.allclose(model(images), plain(images), atol=1e-2)
    ours, theirs = (m.run_with_cache(images)[1] for m in (model, expected))
    assert torch.allclose(ours["pattern", 2], theirs["pattern", 2], atol=1e-5)
    assert torch.allclose(ours.stack_head_results(), theirs.stack_head_results(), atol=1e-5)
    assert torch.allclose(ours.decompose_resid(), theirs.decompose_resid(), atol=1e-5)


def test_one_adapter_runs_as_peft_itself_runs_it() -> None:
    model, plain, _ = adapted()
    layers = [part for part in model.core.modules() if isinstance(part, peft.tuners.lora.LoraLayer)]
    images = torch.randn(4, 3, 16, 16)
    ours = model(images)
    for step in model.blocks:
        step.attn.adapter = step.mlp.adapter = None
    assert torch.equal(model(images), plain(images))
    for layer in layers:
        layer.set_adapter("default")
    assert len(layers) == 4 and torch.allclose(model(images), ours, atol=1e-5)


@pytest.mark.parametrize("shape", ["bvit", "between"])
def test_the_gradient_of_one_adapter_is_the_sum_over_its_uses(shape: str) -> None:
    """Against the unrolled model, in which every use has a weight of its own."""
    model, plain, _ = adapted(shape)
    images, expected = torch.randn(4, 3, 16, 16), unrolled(model, plain)
    for run in (model, expected):
        run(images).square().sum().backward()
    for matrix in ("qkv", "proj", "fc1", "fc2"):
        part = dict(map(reversed, MATRICES))[matrix]
        for block in range(plain.config.n_blocks):
            uses = [t for t in range(3) if plain.config.block_of(t) == block]
            b, a = factors(model, uses[0], matrix)
            of_sum = sum(expected.core[t].get_parameter(f"{part}.{matrix}.weight").grad for t in uses)
            assert torch.allclose(b.grad, of_sum @ a.T, atol=1e-4, rtol=1e-4)
            assert torch.allclose(a.grad, b.T @ of_sum, atol=1e-4, rtol=1e-4)


def test_adapters_of_two_steps_have_gradients_of_their_own() -> None:
    model, plain, _ = adapted(per_step=True)
    images, expected = torch.randn(4, 3, 16, 16), unrolled(model, plain)
    for run in (model, expected):
        run(images).square().sum().backward()
    for t in range(3):
        b, a = factors(model, t, "fc1")
        assert torch.allclose(b.grad, expected.core[t].mlp.fc1.weight.grad @ a.T, atol=1e-4, rtol=1e-4)


@BOTH
def test_only_adapters_and_head_are_trained_and_the_seed_draws_them(per_step: bool) -> None:
    model, _, _ = adapted(per_step=per_step)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("head.") for name in trained)
    sizes = sum(rank * sum(shape) for shape in masks.shapes(CONFIG).values() for rank in [2])
    n = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert n == sizes * (3 if per_step else 1) + 5 * 17
    one, same, other = (made() for _ in range(3))
    for at, seed in ((one, 0), (same, 0), (other, 1)):
        adapters.add(at, 2, per_step=per_step, seed=seed)
    drawn = [torch.cat([factors(at, t, "qkv")[1] for t in (0, 2)]) for at in (one, same, other)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(*drawn[0].chunk(2)) != per_step


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_come_back_from_their_folder(shape: str, per_step: bool, tmp_path: Path) -> None:
    model, plain, wrapper = adapted(shape, per_step)
    images = torch.randn(2, 3, 16, 16)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    adapters.save(wrapper, tmp_path / "a")
    back = adapters.load(plain, tmp_path / "a")
    assert torch.allclose(back(images), model(images), atol=1e-6) and not back.training
    assert not any(".lora_" in name for name in plain.state_dict())
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    n = 3 if per_step else 1
    assert files == sorted(["head.safetensors", "notes.txt", *["adapter_config.json", "adapter_model.safetensors"] * n])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_plain_peft_reads_what_was_saved(tmp_path: Path) -> None:
    model, plain, wrapper = adapted()
    adapters.save(wrapper, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / "a"))
    assert torch.allclose(theirs(images := torch.randn(2, 3, 16, 16)), model(images), atol=1e-5)


def test_a_pruned_model_keeps_its_masks_under_an_adapter(tmp_path: Path) -> None:
    plain = made()
    chosen = torch.rand(3, sum(masks.sizes(CONFIG).values())) < 0.5
    masks.put_on(plain, chosen)
    model = copy.deepcopy(plain)
    wrapper = adapters.add(model, 2, per_step=True)
    b, a = factors(moved(model), 1, "fc1")
    mask = masks.split(chosen[1], CONFIG)["fc1"]
    assert torch.allclose(model.blocks[1].weight("fc1"), (plain.core[0].mlp.fc1.weight + b @ a) * mask)
    adapters.save(wrapper, tmp_path / "a")
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(adapters.load(plain, tmp_path / "a")(images), model(images), atol=1e-6)


def test_steps_beyond_t_run_with_the_last_adapter() -> None:
    model, plain, _ = adapted(per_step=True)
    images = torch.randn(2, 3, 16, 16)
    expected = unrolled(model, plain)
    state = expected.run_steps(expected.embed(images), 0, 3)
    assert torch.allclose(model(images, n_steps=4), expected.read_out(expected.run_steps(state, 2, 3)), atol=1e-5)
    assert torch.allclose(model.at_steps(4)(images), model(images, n_steps=4))


def test_another_head_is_drawn_from_the_seed_and_the_model_stays(tmp_path: Path) -> None:
    model = made("between")
    names = ["a", "b", "c"]
    one, same, other = (adapters.with_head(model, names, seed) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, same.head.weight) and not torch.equal(one.head.weight, other.head.weight)
    assert one.config.classes == ("a", "b", "c") and model.config.n_classes == 5
    images = torch.randn(2, 3, 16, 16)
    stop = dict(stop_at_step=3)
    assert torch.equal(one(images, **stop), model(images, **stop)) and one(images).shape == (2, 3)


def test_what_is_no_such_adapter_is_one_sentence(tmp_path: Path) -> None:
    _, plain, wrapper = adapted(per_step=True)
    folder = tmp_path / "a"
    adapters.save(wrapper, folder)
    with pytest.raises(InputError, match="holds no adapter_config.json"):
        adapters.load(plain, tmp_path)
    with pytest.raises(InputError, match="belong to another model"):
        adapters.load(made(seed=1), folder)
    with pytest.raises(InputError, match="has 3 steps, the model 2"):
        adapters.load(fresh(ViTConfig.from_dict(CONFIG.to_dict() | {"n_steps": 2}), 0), folder)
    config = json.loads((folder / "step1" / "adapter_config.json").read_text())
    (folder / "step1" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InputError, match="only plain LoRA"):
        adapters.load(plain, folder)
    (folder / "step1" / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "step1" / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[:-1]), folder / "step1" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="weights of other matrices"):
        adapters.load(plain, folder)
    (folder / "step1" / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        adapters.load(plain, folder)
    (folder / "head.safetensors").unlink()
    with pytest.raises(InputError, match="not the head"):
        adapters.load(plain, folder)


def test_what_cannot_be_adapted_or_saved_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rank is 17"):
        adapters.add(made(), 17)
    with pytest.raises(InputError, match="from the mean of its patches, not from CLS"):
        adapters.with_head(fresh(ViTConfig.from_dict(CONFIG.to_dict() | {"pool": "mean"}), 0), ["a"])
    with pytest.raises(InputError, match="with adapters is no checkpoint"):
        checkpoint.save(tmp_path / "ckpt.pt", adapted()[0])
