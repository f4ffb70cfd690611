"""One image's run, and what each head is worth in it, against plain forwards with weights set to zero."""

import numpy as np
import pytest
import torch

from models import BViT, ViTConfig
from models.checkpoint import fresh
from probes.methods import one_image

SHAPE = dict(n_steps=3, d_model=16, n_heads=2, n_classes=5, image_size=16, patch_size=4)


@pytest.fixture(params=[dict(), dict(n_blocks=3), dict(n_registers=2, pool="mean", step_embedding="learned")])
def model(request) -> BViT:
    """A bViT, a stacked ViT, and one with registers that reads the mean patch; weights large enough to matter."""
    model = fresh(ViTConfig.preset("bvit_easy", **(SHAPE | request.param)), 0)
    with torch.no_grad():
        for parameter in model.core.parameters():
            parameter.mul_(3)
    return model.eval().requires_grad_(False)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))


def plainly(model: BViT, image: torch.Tensor, off: set) -> torch.Tensor:
    """Probabilities [class] of one forward of its own, in which the output projection's columns of a head are zero at
    its step.
    """
    width, z = model.config.d_model // model.config.n_heads, model.embed(image[None])
    with torch.no_grad():
        for t in range(model.config.n_steps):
            weight = model.core[model.config.block_of(t)].attn.proj.weight
            kept = weight.clone()
            for head in (head for step, head in off if step == t):
                weight[:, head * width : (head + 1) * width] = 0
            z = model.run_steps(z, t, t + 1)
            weight.copy_(kept)
        return model.read_out(z)[0].softmax(-1)


@pytest.mark.parametrize("off", [(), ((1, 0),), ((0, 1), (1, 0), (1, 1))])
def test_flipping_a_head_is_a_forward_of_its_own(model, image, off):
    with torch.inference_mode():
        state = model.embed(image[None])
        for step in range(3):
            found = one_image.flipped(model, state, step, off)
            state = one_image.after_step(model, state, step, off)
            for head in range(2):
                expected = plainly(model, image, set(off) ^ {(step, head)})
                assert found[0, head] == pytest.approx(expected.numpy(), abs=1e-5)
            assert [bool(one.isnan().all()) for one in found[1]] == [(step, head) in off for head in range(2)]
    assert one_image.trace(model, image, off)["probability"][-1] == pytest.approx(plainly(model, image, off), abs=1e-5)


def test_the_random_change_moves_every_token_as_far_as_the_head_does(model, image):
    with torch.inference_mode():
        state = model.embed(image[None])
        _, cache = model.run_with_cache(image[None], names_filter="blocks.0.attn.hook_z")
        written = torch.einsum("phd,hdm->hpm", cache["z", 0][0], model.blocks[0].attn.W_O)
        direction = one_image.parts.directions(torch.zeros(1, dtype=torch.long), 3, 16, one_image.SEED)[0, 0]
        for head in range(2):
            push = written[head].norm(dim=-1, keepdim=True) * direction
            hook = ("blocks.0.hook_attn_out", lambda out, hook, push=push: out + push)
            expected = model.run_with_hooks(image[None], fwd_hooks=[hook])[0].softmax(-1)
            assert one_image.flipped(model, state, 0)[1, head] == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_trace_is_read_out_state_by_state_and_patch_by_patch(model, image):
    traced, n_prefix = one_image.trace(model, image, target=2), model.config.n_prefix
    with torch.inference_mode():
        for k in range(4):
            assert traced["probability"][k] == pytest.approx(model(image[None], n_steps=k)[0].softmax(-1), abs=1e-5)
            state = model.run_steps(model.embed(image[None]), 0, k)[0]
            says = model.head(model.norm(state[n_prefix:])).softmax(-1).reshape(4, 4, -1)
            assert traced["patch_target"][k] == pytest.approx(says[..., 2], abs=1e-5)
            assert np.array_equal(traced["patch_answer"][k], says.argmax(-1))
    assert traced["attention"].shape == (3, 2, 4, 4) and traced["to_cls"].shape == (3, 2)


def test_a_transplant_is_a_run_that_goes_on_from_both_states(model, image):
    tokens = torch.tensor([[True] + [False] * (model.config.n_tokens - 1), [True] * model.config.n_tokens])
    donor = image.flip(-1)
    with torch.inference_mode():
        for step in range(3):
            own, other = (model.run_steps(model.embed(one[None]), 0, step) for one in (image, donor))
            found = one_image.transplanted(model, own, other, step, tokens)
            mixed = own.clone()
            mixed[:, 0] = other[:, 0]
            expected = model.read_out(model.run_steps(mixed, step, 3))[0].softmax(-1)
            assert found[0] == pytest.approx(expected.numpy(), abs=1e-5)
            assert found[1] == pytest.approx(model(donor[None])[0].softmax(-1).numpy(), abs=1e-5)
