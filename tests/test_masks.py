"""Run with: pytest tests/test_masks.py"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models import ViTConfig, checkpoint, load, masks
from models.checkpoint import fresh
from models.errors import InputError

CONFIG = ViTConfig(image_size=16, patch_size=8, d_model=16, n_heads=2, n_steps=3, n_classes=5)


def drawn(config: ViTConfig = CONFIG, density: float = 0.5) -> torch.Tensor:
    return torch.rand(config.n_steps, sum(masks.sizes(config).values())) < density


def unrolled(model, chosen: torch.Tensor):
    """The same function as a stacked ViT whose block t holds the weights of step t times its mask: masks nowhere in
    sight.
    """
    config = model.config
    other = fresh(ViTConfig.from_dict(config.to_dict() | {"n_blocks": config.n_steps}), 0).eval()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("core")}
    for t in range(config.n_steps):
        block = {name: value for name, value in model.core[config.block_of(t)].state_dict().items()}
        for name, mask in masks.split(chosen[t], config).items():
            block[masks.WEIGHTS[name]] = block[masks.WEIGHTS[name]] * mask
        state |= {f"core.{t}.{name}": value for name, value in block.items()}
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_a_masked_model_is_the_stacked_model_of_its_masked_blocks(n_blocks: int) -> None:
    config = ViTConfig.from_dict(CONFIG.to_dict() | {"n_blocks": n_blocks})
    model, chosen, images = fresh(config, 1).eval(), drawn(), torch.randn(4, 3, 16, 16)
    expected = unrolled(model, chosen)
    masks.put_on(model, chosen)
    assert torch.allclose(model(images), expected(images), atol=1e-6)
    ours, theirs = (m.run_with_cache(images)[1] for m in (model, expected))
    assert torch.allclose(ours["pattern", 2], theirs["pattern", 2], atol=1e-6)
    assert torch.allclose(ours.stack_head_results(), theirs.stack_head_results(), atol=1e-5)
    assert torch.allclose(ours.decompose_resid(), theirs.decompose_resid(), atol=1e-5)


def test_gradients_reach_a_weight_through_the_steps_that_keep_it() -> None:
    model, chosen = fresh(CONFIG, 1), drawn(density=0.3)
    masks.put_on(model, chosen)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    gradient = masks.joined({name: model.core[0].get_parameter(path).grad for name, path in masks.WEIGHTS.items()})
    assert (gradient[~chosen.any(0)] == 0).all()
    assert (gradient[chosen.any(0)] != 0).float().mean() > 0.99


def test_masks_survive_saving_copying_steps_and_beyond(tmp_path: Path) -> None:
    model, chosen, images = fresh(CONFIG, 1).eval(), drawn(), torch.randn(2, 3, 16, 16)
    masks.put_on(model, chosen)
    assert (masks.taken_from(model) == chosen).all() and masks.taken_from(fresh(CONFIG, 1)) is None
    checkpoint.save(tmp_path / "ckpt.pt", model)
    again = load(tmp_path / "ckpt.pt")
    assert torch.equal(again(images), model(images))
    assert torch.equal(model.at_steps(2)(images), model(images, n_steps=2))
    assert torch.equal(model.at_steps(5)(images), model(images, n_steps=5))
    assert set(model.state_dict()) == set(fresh(CONFIG, 1).state_dict())


def test_a_model_of_one_step_has_its_mask() -> None:
    config = ViTConfig.from_dict(CONFIG.to_dict() | {"n_steps": 1})
    chosen = drawn(config)
    assert (masks.taken_from(masks.put_on(fresh(config, 1), chosen)) == chosen).all()


def test_masks_are_where_the_model_is() -> None:
    model = masks.put_on(fresh(CONFIG, 1).to("meta"), drawn())
    assert {step.weight(name).device.type for step in model.blocks for name in masks.WEIGHTS} == {"meta"}


def test_packing_is_numpys(tmp_path: Path) -> None:
    chosen = drawn()
    content = masks.packed(chosen)
    assert (np.unpackbits(content.numpy(), axis=-1)[:, : chosen.shape[1]].astype(bool) == chosen.numpy()).all()
    assert (masks.unpacked(content, CONFIG) == chosen).all()
    assert (masks.joined(masks.split(chosen, CONFIG)) == chosen).all()


def test_matrices_are_joined_by_either_of_their_names() -> None:
    chosen = drawn()
    by_parameter = {masks.WEIGHTS[name]: matrix for name, matrix in masks.split(chosen, CONFIG).items()}
    assert (masks.joined(by_parameter) == chosen).all()


def test_bytes_hold_the_weights_of_any_number_of_rows() -> None:
    config = ViTConfig(image_size=16, patch_size=8, d_model=3, n_heads=1, n_steps=2, d_mlp=3)
    chosen = drawn(config)
    assert chosen.shape[1] % 8 and (masks.unpacked(masks.packed(chosen), config) == chosen).all()
    assert (masks.unpacked(masks.packed(chosen[:1]), config, rows=1) == chosen[:1]).all()


@pytest.mark.parametrize("content", [torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(3, 384, dtype=torch.int32)])
def test_bytes_of_another_kind_are_refused(content: torch.Tensor) -> None:
    found = re.escape(f"ckpt.pt: masks are {str(content.dtype)[6:]} {list(content.shape)}, those of this model are")
    with pytest.raises(InputError, match=rf"^{found} uint8 .* = \[3, 384\]$"):
        masks.unpacked(content, CONFIG, path="ckpt.pt")
    with pytest.raises(InputError, match="^a file: masks are"):
        masks.unpacked(content, CONFIG)


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(InputError, match="step weight"):
        masks.put_on(fresh(CONFIG, 0), drawn(ViTConfig.from_dict(CONFIG.to_dict() | {"n_steps": 2})))
