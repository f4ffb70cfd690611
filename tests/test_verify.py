"""The receipt holds for every kind of model, and each of its lines can fail. Run with: pytest tests/test_verify.py"""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformer_lens import ActivationCache

from models import ViTConfig, block, cache, checkpoint, hooks, load, masks, plain_forward, timm_bridge, verify, vit
from models.checkpoint import fresh

SIZE = dict(n_steps=2, d_model=24, n_heads=3, image_size=16, patch_size=8, n_classes=5)
EVERYTHING = dict(step_embedding="learned", n_registers=2, layer_scale=0.5)
SMALL = dict(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
ROTARY = dict(use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100.0)
ROTARY |= dict(rope_rotate_half=True, use_fc_norm=False, global_pool="token", init_values=0.3, num_reg_tokens=2)
TIMM, PARTS = "logits of timm's ViT against it", "parts of the logits sum to them"


def shaken(model):
    """Every parameter matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def a_model(**fields):
    return shaken(fresh(ViTConfig(**(SIZE | fields)), 0))


def pruned():
    model = a_model()
    return masks.put_on(model, torch.rand(2, sum(masks.sizes(model.config).values())) < 0.5)


KINDS = {
    "bvit": (a_model, set()),
    "everything": (lambda: a_model(**EVERYTHING), {TIMM}),
    "stacked, mean, rms": (lambda: a_model(n_blocks=2, pool="mean", norm="rms", n_registers=1), set()),
    "two blocks, waves, no head": (
        lambda: a_model(n_steps=3, n_blocks=2, step_embedding="sinusoidal", n_classes=0),
        {TIMM, PARTS},
    ),
    "pruned": (pruned, {TIMM}),
    "distilled": (lambda: a_model(pool="distilled", n_registers=1), {PARTS}),
    "untrained and sharply curved": (
        lambda: fresh(ViTConfig.preset("bvit_easy", n_steps=2, d_model=16, n_heads=2, n_registers=4), 0).eval(),
        set(),
    ),
    "clip": (lambda: a_model(pre_norm=True, activation="quick_gelu", qk_norm=True), set()),
}


def by_name(lines):
    return {line.what: line for line in lines}


@pytest.mark.parametrize("kind", KINDS)
def test_the_receipt_holds(kind) -> None:
    make, without = KINDS[kind]
    lines = verify.receipt(make())
    assert [str(line) for line in lines if not line.holds] == []
    assert {line.what for line in lines if line.largest is None} == without
    assert len(lines) == len(verify.LINES) and all(line.why for line in lines if line.largest is None)


@pytest.mark.parametrize(("kind", "fields"), [(VisionTransformer, SMALL), (Eva, SMALL | ROTARY)])
def test_a_timm_source_is_held_against_timms_own_module(kind, fields, monkeypatch) -> None:
    module = shaken(kind(**fields))
    monkeypatch.setattr(timm_bridge, "create", lambda name, file: (copy.deepcopy(module), "raw"))
    lines = by_name(verify.receipt(load(module), "timm:anything"))
    assert lines[TIMM].largest is not None and [str(line) for line in lines.values() if not line.holds] == []
    other = shaken(copy.deepcopy(module))
    monkeypatch.setattr(timm_bridge, "create", lambda name, file: (other, "raw"))
    assert not by_name(verify.receipt(load(module), "timm:anything"))[TIMM].holds


# Each line fails where what it looks at is wrong


def wrong_mlp(monkeypatch) -> None:
    right = plain_forward.mlp
    monkeypatch.setattr(plain_forward, "mlp", lambda *args: right(*args) * (1 + 1e-4))


def wrong_precision(monkeypatch) -> None:
    right = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: right(x) * (1.1 if x.dtype == torch.float32 else 1))


def wrong_export(monkeypatch) -> None:
    right = timm_bridge.to_timm
    monkeypatch.setattr(timm_bridge, "to_timm", lambda model: shaken(right(model)))


def called_twice(monkeypatch) -> None:
    right = hooks.NormHooks.forward
    monkeypatch.setattr(hooks.NormHooks, "forward", lambda self, x: (right(self, x), right(self, x))[1])


def watching_disturbs(monkeypatch) -> None:
    right = hooks.NormHooks.forward
    monkeypatch.setattr(hooks.NormHooks, "forward", lambda self, x: right(self, x + 1e-4 * x.square()))


def step_embeddings_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(cache.StepCache, "decompose_resid", ActivationCache.decompose_resid)


def layer_scale_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(hooks.MlpHooks, "b_out", property(lambda self: self.half.fc2.bias))


def bias_of_the_norm_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(vit.BViT, "b_U", property(lambda self: self.head.bias))


def other_temperature(monkeypatch) -> None:
    right = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: right(q * 1.01, k, v))


def cut_gradient(monkeypatch) -> None:
    right = block.Mlp.forward
    monkeypatch.setattr(block.Mlp, "forward", lambda self, x, *rest: right(self, x.detach(), *rest))


def deaf_hook(monkeypatch) -> None:
    def forward(self, h, step, step_embedding=None):
        step.hook_resid_pre(h)  # what a hook gives back is not used
        u = h + step.attn(self.norm1(h), self)
        return u + step.mlp(self.norm2(u), self)

    monkeypatch.setattr(block.Block, "forward", forward)


FAULTS = [
    wrong_mlp,
    wrong_precision,
    wrong_export,
    called_twice,
    watching_disturbs,
    step_embeddings_forgotten,
    layer_scale_forgotten,
    bias_of_the_norm_forgotten,
    other_temperature,
    cut_gradient,
    deaf_hook,
]
OF_EVERYTHING = (step_embeddings_forgotten, layer_scale_forgotten)


@pytest.mark.parametrize(
    ("line", "fault"), [*zip(verify.LINES, FAULTS, strict=True)], ids=lambda one: getattr(one, "__name__", "")
)
def test_a_line_fails(line, fault, monkeypatch) -> None:
    model = a_model(**(EVERYTHING if fault in OF_EVERYTHING else {}))
    check, allowed = verify.LINES[line]
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    of = [verify.Subject(copy.deepcopy(model).double(), images, "", model) for _ in range(2)]
    with torch.no_grad():
        assert check(of[0]) <= allowed
        fault(monkeypatch)
        assert check(of[1]) > allowed


def test_what_is_not_finite_fails() -> None:
    model = a_model()
    nn.init.constant_(model.head.bias, float("nan"))
    assert not by_name(verify.receipt(model))["logits against the plain forward"].holds


# The command


def test_the_command_says_so_and_ends_with_1_where_a_line_fails(tmp_path, command, monkeypatch) -> None:
    checkpoint.save(tmp_path / "ckpt.pt", a_model())
    code, out, _ = command("models.verify", tmp_path)
    assert code == 0 and out.count("\nok ") == len(verify.LINES) and "all of it holds" in out
    wrong_mlp(monkeypatch)
    code, out, _ = command("models.verify", tmp_path)
    assert code == 1 and "FAILS logits against the plain forward" in out and f"of {len(verify.LINES)} lines fail" in out
    code, _, err = command("models.verify", tmp_path / "nowhere")
    assert code == 2 and "there is no file or folder" in err
    code, _, err = command("models.verify", "a" * 5000)
    assert code == 2 and "there is no file or folder aaa" in err and len(err) < 500
    code, _, err = command("models.verify", tmp_path, "--seed", 2**64)
    assert code == 2 and "--seed is" in err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_command_names_weights_that_are_not_finite(value, tmp_path, command) -> None:
    model = a_model()
    nn.init.constant_(model.core[0].mlp.fc1.bias, value)
    checkpoint.save(tmp_path / "ckpt.pt", model)
    code, out, err = command("models.verify", tmp_path)
    assert code == 2 and not out and "core.0.mlp.fc1.bias is not finite" in err
