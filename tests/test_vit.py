"""Run with: pytest tests/test_vit.py"""

import copy
import itertools
import re

import pytest
import torch
from torch.func import functional_call

from models import BViT, ViTConfig, hooks
from models.checkpoint import fresh, n_parameters
from models.errors import InputError
from tests.reference import slow_vit

VARIANTS = {
    "bViT": {},
    "stacked": dict(n_blocks=4),
    "between": dict(n_blocks=2),
    "TE": dict(step_embedding="learned"),
    "sinusoidal": dict(step_embedding="sinusoidal"),
    "registers": dict(n_registers=3),
    "rms": dict(norm="rms"),
    "layer scale": dict(layer_scale=0.3),
    "mean": dict(pool="mean"),
    "everything": dict(step_embedding="learned", n_registers=2, norm="rms", layer_scale=0.3),
}


def make(**fields) -> BViT:
    """A small model whose every parameter matters."""
    config = ViTConfig.preset(
        "bvit_easy", n_steps=4, d_model=24, n_heads=3, n_classes=5, classes=tuple("abcde"), **fields
    )
    model = fresh(config, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model


@pytest.fixture(params=VARIANTS, ids=str)
def model(request) -> BViT:
    return make(**VARIANTS[request.param])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize(
    ("size", "bvit", "vit"),
    [
        ("tiny", 823_912, 5_717_416),
        ("small", 2_531_560, 22_050_664),
        ("base", 8_601_064, 86_567_656),
        ("large", 14_613_480, 304_326_632),
    ],
)
def test_parameter_counts_are_the_papers(size: str, bvit: int, vit: int) -> None:
    assert (n_parameters(ViTConfig.preset(f"bvit_{size}")), n_parameters(ViTConfig.preset(f"vit_{size}"))) == (
        bvit,
        vit,
    )


@pytest.mark.parametrize("n_steps", [None, 0, 2])
def test_logits_equal_the_slow_reference(model: BViT, images, n_steps) -> None:
    expected = torch.stack([slow_vit.forward(image, model.state_dict(), model.config, n_steps) for image in images])
    assert torch.allclose(model(images, n_steps=n_steps), expected, atol=2e-5)


def test_one_block_runs_beyond_T_and_more_do_not(images) -> None:
    for name in ("bViT", "TE", "sinusoidal"):
        model = make(**VARIANTS[name])
        expected = torch.stack([slow_vit.forward(image, model.state_dict(), model.config, 9) for image in images])
        assert torch.allclose(model(images, n_steps=9), expected, atol=1e-4)
    with pytest.raises(InputError, match="n_steps = 5 is beyond the 4 steps of a model with 2 blocks"):
        make(n_blocks=2)(images, n_steps=5)


def test_explicit_attention_equals_fused(model: BViT, images) -> None:
    fused = model(images)
    _, cache = model.run_with_cache(
        images, names_filter=["blocks.*.attn.hook_pattern", "blocks.*.attn.hook_attn_scores"]
    )
    assert torch.allclose(model.run_with_cache(images, names_filter="blocks.*.attn.hook_pattern")[0], fused, atol=1e-5)
    assert torch.allclose(cache["pattern", 2].sum(-1), torch.ones(3, 3, model.config.n_tokens), atol=1e-6)
    for point in ("attn.hook_result", "ln1.hook_normalized", "ln2.hook_scale"):
        assert torch.allclose(model.run_with_cache(images, names_filter=f"blocks.*.{point}")[0], fused, atol=1e-5)


def test_the_table_of_hook_points_is_true() -> None:
    """Every name and shape in the docstring of models.hooks, against a running model; and no point that the table
    lacks.
    """
    model = make(step_embedding="learned", n_registers=2)
    c = model.config
    sizes = dict(
        batch=3,
        pos=c.n_tokens,
        d_model=c.d_model,
        head=c.n_heads,
        d_head=c.d_head,
        query=c.n_tokens,
        key=c.n_tokens,
        d_mlp=c.d_mlp,
    )
    images, apart = torch.randn(3, 3, 32, 32), model.names("blocks.*_input")
    _, inputs = model.run_with_cache(images, names_filter=apart)
    _, cache = model.run_with_cache(images, names_filter=[name for name in model.hook_dict if name not in apart])
    told = {}
    for row in re.findall(r"^\| (.*hook_.*) \| \[(.*)\] \|$", hooks.__doc__, re.M):
        names = re.sub(r"\(.*?\)", "", row[0]).split(", ")
        for name in names:
            name = name.strip()
            prefix = re.match(r"blocks\.\{t\}\.(attn\.|mlp\.)?", names[0])
            if not name.startswith(("blocks", "hook_embed", "hook_pos_embed", "ln")) and prefix:
                name = prefix[0] + name
            name = re.sub(r"^(ln[12])", r"blocks.{t}.\1", name)
            shape = tuple(sizes.get(axis) or int(axis) for axis in row[1].split())
            told |= {name.format(t=t): shape for t in range(c.n_steps)}
    assert told == {name: tuple(value.shape) for name, value in (*cache.items(), *inputs.items())}


def test_components_sum_to_the_stream_and_to_the_logit(model: BViT, images) -> None:
    logits, cache = model.run_with_cache(images)
    final = cache["resid_post", -1]
    assert torch.allclose(cache.decompose_resid().sum(0), final, atol=1e-4)
    everything, labels = cache.get_full_resid_decomposition(expand_neurons=True, return_labels=True)
    assert torch.allclose(everything.sum(0), final, atol=1e-4) and len(labels) == len(everything)
    assert torch.allclose(cache.accumulated_resid()[-1], final)
    heads = cache.stack_head_results(incl_remainder=True)
    assert torch.allclose(heads.sum(0), final, atol=1e-4)
    assert torch.allclose(cache.stack_neuron_results(4, incl_remainder=True).sum(0), final, atol=1e-4)
    if model.config.pool == "cls":
        cls = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=0)
        labels = torch.tensor([1, 4, 2])
        attribution = cache.logit_attrs(cls, labels, pos_slice=0, has_batch_dim=True)
        expected = (logits - model.b_U)[torch.arange(3), labels]
        assert torch.allclose(attribution.sum(0), expected, atol=1e-4)
        by_name = cache.logit_attrs(cls, "c", pos_slice=0)
        assert torch.allclose(by_name.sum(0), (logits - model.b_U)[:, 2], atol=1e-4)


def test_logit_lens_reads_every_state(model: BViT, images) -> None:
    lens = model.run_with_cache(images)[1].logit_lens()
    for k in range(5):
        assert torch.allclose(lens[k], model(images, n_steps=k), atol=1e-5)


def test_a_module_hook_on_a_step_fires_once_with_that_step(images) -> None:
    model, seen = make(), []
    handle = model.blocks[2].register_forward_hook(lambda module, args, output: seen.append(output))
    model(images)
    handle.remove()
    _, cache = model.run_with_cache(images)
    assert len(seen) == 1 and torch.allclose(seen[0], cache["resid_post", 2], atol=1e-5)


def test_captum_gradcam_and_timm_get_the_step(images) -> None:
    from captum.attr import LayerActivation
    from pytorch_grad_cam import GradCAM
    from timm.models._features import FeatureHooks

    model = make()
    _, cache = model.run_with_cache(images)
    assert torch.allclose(LayerActivation(model, model.blocks[1]).attribute(images), cache["resid_post", 1], atol=1e-5)
    features = FeatureHooks(["blocks.3"], model.named_modules())
    model(images)
    assert torch.allclose(next(iter(features.get_output(images.device).values())), cache["resid_post", 3], atol=1e-5)
    maps = []
    for t in (0, 3):
        with GradCAM(
            model, [model.blocks[t]], reshape_transform=lambda z: z[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        ) as cam:
            maps.append(torch.as_tensor(cam(images, targets=None)))
    assert maps[0].shape == (3, 32, 32) and not torch.allclose(maps[0], maps[1])


def test_ready_hooks_equal_edits_by_hand(images) -> None:
    model = make()
    w, c = model.state_dict(), model.config
    run = lambda hook, name="blocks.1.attn.hook_z": model.run_with_hooks(images, fwd_hooks=[(name, hook)])  # noqa: E731
    edited = copy.deepcopy(w)
    edited["core.0.attn.proj.weight"][:, 8:16] = 0

    def by_hand(image):
        z = torch.stack(list(slow_states(image, w, c, 1)))[-1]
        z = z + slow_vit.attention(slow_vit.norm(z, w, "core.0.norm1", c), edited, "core.0", c)
        z = z + slow_vit.mlp(slow_vit.norm(z, w, "core.0.norm2", c), w, "core.0")
        rest = model.run_steps(z[None], 2, 4)
        return model.read_out(rest)[0]

    assert torch.allclose(run(hooks.head(1, hooks.zero)), torch.stack([by_hand(image) for image in images]), atol=1e-4)
    _, cache = model.run_with_cache(images)
    z = cache["z", 1]
    assert torch.allclose(run(hooks.replace(z)), model(images), atol=1e-5)
    assert torch.allclose(run(hooks.mean), run(hooks.replace(z.mean(0))), atol=1e-6)
    assert torch.equal(run(hooks.add_noise(0.5, seed=3)), run(hooks.add_noise(0.5, seed=3)))
    assert not torch.allclose(run(hooks.add_noise(0.5, seed=3)), model(images), atol=1e-2)
    whole = run(hooks.zero, "blocks.1.attn.hook_pattern")
    assert torch.allclose(whole, run(hooks.zero), atol=1e-5)


def slow_states(image, w, c, n):
    """The state after n steps, by the reference."""
    config = ViTConfig.from_dict(c.to_dict())
    tokens = torch.stack(
        [w["cls_token"][0, 0]]
        + [
            w["patch_embed.proj.weight"].flatten(1) @ image[:, y : y + 8, x : x + 8].flatten()
            + w["patch_embed.proj.bias"]
            for y, x in itertools.product(range(0, 32, 8), repeat=2)
        ]
    )
    z = tokens + w["pos_embed"][0]
    for _ in range(n):
        z = z + slow_vit.attention(slow_vit.norm(z, w, "core.0.norm1", config), w, "core.0", config)
        z = z + slow_vit.mlp(slow_vit.norm(z, w, "core.0.norm2", config), w, "core.0")
        yield z


def test_reducing_filters_keep_only_what_they_return(images) -> None:
    model = make()
    _, cache = model.run_with_cache(
        images,
        names_filter={"blocks.*.attn.hook_pattern": lambda p: p[:, :, 0].argmax(-1), "ln_final.hook_scale": torch.mean},
    )
    _, whole = model.run_with_cache(images)
    assert set(cache.keys()) == {f"blocks.{t}.attn.hook_pattern" for t in range(4)} | {"ln_final.hook_scale"}
    assert torch.equal(cache["pattern", 3], whole["pattern", 3][:, :, 0].argmax(-1))


@pytest.mark.parametrize(
    "names",
    [
        "blocks.1.hook_resid_post",
        ("blocks.1.hook_resid_post",),
        {"blocks.1.hook_resid_post"},
        lambda n: n == "blocks.1.hook_resid_post",
    ],
)
def test_names_may_be_given_in_any_way(names, images) -> None:
    assert list(make().run_with_cache(images, names_filter=names)[1].keys()) == ["blocks.1.hook_resid_post"]


def test_errors_instead_of_silence(images) -> None:
    model = make()
    with pytest.raises(InputError, match=r"nearest is 'blocks.1.attn.hook_pattern'"):
        model.run_with_cache(images, names_filter="blocks.1.attn.hook_patern")
    with pytest.raises(InputError, match="steps 0 to 3"):
        model.run_with_hooks(images, fwd_hooks=[("blocks.7.hook_resid_post", hooks.zero)])
    with pytest.raises(InputError, match="never be reached"):
        model.run_with_cache(images, names_filter="blocks.3.hook_resid_post", stop_at_step=2)
    with pytest.raises(InputError, match="stop_at_step = 5"):
        model(images, stop_at_step=5)
    with pytest.raises(InputError, match="negative"):
        model(images, n_steps=-1)


def test_stopping_at_a_step_gives_the_stream_that_enters_it(images) -> None:
    model = make()
    _, cache = model.run_with_cache(images)
    assert torch.allclose(model(images, stop_at_step=2), cache["resid_pre", 2], atol=1e-5)
    assert torch.allclose(model(images, stop_at_step=-1), cache["resid_pre", 3], atol=1e-5)
    stream, partial = model.run_with_cache(images, stop_at_step=2)
    assert torch.allclose(stream, cache["resid_pre", 2], atol=1e-5) and "blocks.2.hook_resid_pre" not in partial


@pytest.mark.parametrize(("variant", "k"), [("bViT", 2), ("bViT", 7), ("TE", 6), ("between", 3), ("stacked", 2)])
def test_at_steps_shares_weights_and_covers_its_steps(variant: str, k: int, images) -> None:
    model = make(**VARIANTS[variant])
    other = model.at_steps(k)
    assert torch.allclose(other(images), model(images, n_steps=k), atol=1e-5)
    assert (
        f"blocks.{k - 1}.hook_resid_post" in other.run_with_cache(images)[1]
        and f"blocks.{k}.hook_resid_post" not in other.hook_dict
    )
    assert other.core[0].attn.qkv.weight is model.core[0].attn.qkv.weight
    assert model.config.n_steps == 4 and len(model.blocks) == 4


def test_a_copy_runs_its_own_weights(images) -> None:
    model = make()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.core[0].mlp.fc2.weight.zero_()
    assert not torch.allclose(other(images), model(images), atol=1e-3)
    assert other.blocks[1].mlp.W_out.abs().max() == 0


def test_weights_of_one_step_through_functional_call(images) -> None:
    """Other weights at step 2 alone equal a stacked model with that block there."""
    model, stacked = make(), make(n_blocks=4)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("core.")}
    block = {
        name.removeprefix("core.0."): value for name, value in model.state_dict().items() if name.startswith("core.0.")
    }
    graft = {name: value * 0.5 for name, value in block.items()}
    for t in range(4):
        state |= {f"core.{t}.{name}": value for name, value in (graft if t == 2 else block).items()}
    stacked.load_state_dict(state)
    z = model.run_steps(model.embed(images), 0, 2)
    z = functional_call(model.core[0], graft, (z, model.blocks[2]))
    assert torch.allclose(model.read_out(model.run_steps(z, 3, 4)), stacked(images), atol=1e-5)


def test_drop_path_drops_whole_branches_and_keeps_the_mean() -> None:
    model = make(drop_path=0.5).train()
    branch = torch.ones(4000, 2, 3)
    dropped = model.core[0].dropped(branch)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and abs(dropped.mean() - 1) < 0.1
    assert (dropped.flatten(1).std(1) == 0).all()
    assert torch.equal(model.eval().core[0].dropped(branch), branch)


def test_gradients_flow_through_backward_hooks(images) -> None:
    model, seen = make(), {}
    with model.hooks(bwd_hooks=[("blocks.2.hook_resid_post", lambda grad, hook: seen.update(grad=grad))]):
        model(images)[:, 1].sum().backward()
    z = model.run_steps(model.embed(images), 0, 3).detach().requires_grad_()
    model.read_out(model.run_steps(z, 3, 4))[:, 1].sum().backward()
    assert torch.allclose(seen["grad"], z.grad, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(d_model=25), "multiple of n_heads"),
        (dict(patch_size=7), "patch_size"),
        (dict(n_blocks=9), "cannot exceed"),
        (dict(norm="bn"), "norm"),
        (dict(drop_path=1.0), "drop_path"),
    ],
)
def test_a_bad_config_is_one_sentence(fields, message) -> None:
    with pytest.raises(InputError, match=message):
        ViTConfig.preset("bvit_easy", **({"d_model": 24, "n_heads": 3, "n_steps": 4} | fields))
