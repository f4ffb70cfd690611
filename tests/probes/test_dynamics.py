"""Run with: pytest tests/probes/test_dynamics.py"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from analyses import dynamics as analysis
from analyses import results, style
from models import load, open_data
from models.checkpoint import fresh, save, state_sha256
from models.errors import InputError
from probes import dynamics as probe
from probes.methods import jacobians, motion
from probes.walk import Pass, limited
from tests.probes.small import CONFIG, SHAPES, moved
from tests.probes.test_similarity import written_out

QUICK = dict(sample=12, max_steps=8, jacobian_images=2, state_images=2, probes=3, iterations=6, batch_size=9)


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 46, 2))


@pytest.fixture(scope="module")
def model(data):
    return moved(data, 0.1)


def opened(data) -> torch.Tensor:
    return torch.stack([data[i][0] for i in range(len(data))])


class Affine(nn.Module):
    """A block that maps every token by `weight` about the point `centre`."""

    def __init__(self, weight: torch.Tensor, centre: torch.Tensor | float = 0.0):
        super().__init__()
        self.attn = self.norm1 = nn.Identity()  # what a block is known by
        self.weight, self.centre = weight, centre

    def forward(self, h: torch.Tensor, step: nn.Module, step_embedding: object = None) -> torch.Tensor:
        h = step.hook_resid_pre(h)
        return step.hook_resid_post((h - self.centre) @ self.weight.T + self.centre)


def affine(data, weight: torch.Tensor, centre: torch.Tensor | float = 0.0, **changes: object):
    """A model of such steps."""
    model = fresh(dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes), **changes), 0).eval()
    with torch.no_grad():
        model.pos_embed.normal_()
    model.core[0] = Affine(weight, centre)
    return model


def rotation(degrees: float) -> torch.Tensor:
    """Turns every pair of the 16 channels."""
    turn = math.radians(degrees)
    return torch.block_diag(*[torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])] * 8)


# Jacobians


def entering(model, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(motion.states_of(model, images))[:-1]


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_jacobian_of_the_cls_row_is_autograd_s(data, changes) -> None:
    model, images = moved(data, 0.1, **changes), opened(data)[:2]
    for t, state in enumerate(entering(model, images)):
        measured = jacobians.of_cls(model, state, t)
        for i in range(2):

            def after(cls: torch.Tensor, i=i, state=state, t=t) -> torch.Tensor:
                return model.run_steps(torch.cat([cls[None, None], state[i : i + 1, 1:]], 1), t, t + 1)[0, 0]

            expected = torch.autograd.functional.jacobian(after, state[i, 0])
            assert torch.allclose(measured[i], expected, atol=1e-5)


def full(model, state: torch.Tensor, t: int) -> torch.Tensor:
    """The Jacobian of a whole state [1 pos d_model] written out."""
    n = state.numel()
    jacobian = torch.autograd.functional.jacobian(lambda z: model.run_steps(z, t, t + 1), state, vectorize=False)
    return jacobian.reshape(n, n)


@pytest.mark.parametrize("changes", [SHAPES["bvit"], SHAPES["between"]], ids=["bvit", "between"])
def test_products_and_lanczos_agree_with_the_whole_jacobian_written_out(data, changes) -> None:
    model = moved(data, 0.1, **changes)
    state = entering(model, opened(data)[:1])[1]
    exact, n = full(model, state, 1).double(), state.numel()
    v = torch.randn_like(state)
    products = jacobians.Products(model, state, 1)
    assert torch.allclose(products.forward(v).flatten().double(), exact @ v.flatten().double(), atol=1e-4)
    assert torch.allclose(products.squared(v).flatten().double(), exact.T @ exact @ v.flatten().double(), atol=1e-3)
    probes = jacobians.signs(np.array([5]), 1, 48, tuple(state.shape[1:]), 0)
    of = jacobians.of_state(model, state, 1, probes, 40)
    error = (of["log_det"].var(0) / 48).sqrt()
    assert float(of["norm"]) == pytest.approx(float(torch.linalg.matrix_norm(exact, 2)), rel=1e-4)
    assert abs(of["log_det"].mean() - torch.linalg.slogdet(exact)[1]) < 3.5 * error
    far = (exact - torch.eye(n)).square().sum()
    assert float(of["size"]) == pytest.approx(float(far), rel=0.1)


def test_lanczos_from_every_axis_gives_the_log_determinant_exactly() -> None:
    root = torch.randn(12, 12, dtype=torch.float64)
    matrix = root @ root.T + 0.1 * torch.eye(12)
    alpha, beta = jacobians.lanczos(lambda v: v @ matrix, torch.eye(12, dtype=torch.float64), 12)
    of_log, largest = jacobians.quadrature(alpha, beta, 1)
    assert float(of_log.sum()) == pytest.approx(float(torch.linalg.slogdet(matrix)[1]), abs=1e-8)
    assert float(largest.max()) == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]))


def test_the_error_of_a_log_determinant_is_that_of_random_signs() -> None:
    """Hutchinson: the variance of v'Lv is 2 (|L|^2 - |diag L|^2)."""
    root = torch.randn(40, 40, dtype=torch.float64) / 40**0.5
    matrix = torch.eye(40) + root @ root.T
    values, vectors = torch.linalg.eigh(matrix)
    log = vectors @ values.log().diag() @ vectors.T
    start = jacobians.signs(np.arange(3000), 0, 1, (5, 8), 0)[0].flatten(1).double()
    of_log, _ = jacobians.quadrature(*jacobians.lanczos(lambda v: v @ matrix, start, 15), 40)
    expected = 2 * (log.square().sum() - log.diagonal().square().sum())
    assert float(of_log.var()) == pytest.approx(float(expected), rel=0.1)
    assert abs(of_log.mean() - torch.linalg.slogdet(matrix)[1]) < 3.5 * (expected / 3000).sqrt()


def test_the_null_of_a_jacobian_is_as_large_and_keeps_volumes() -> None:
    jacobian = torch.eye(200, dtype=torch.float64) + 0.5 * torch.randn(4, 200, 200, dtype=torch.float64)
    drawn = torch.randn_like(jacobian)
    null = jacobians.as_large(jacobian, drawn)
    one = torch.eye(200)
    assert torch.allclose(torch.linalg.matrix_norm(null - one), torch.linalg.matrix_norm(jacobian - one))
    for size in (0.5, 2.5):
        radius = size / 200**0.5
        random = torch.linalg.slogdet(one + radius * drawn)[1].mean()
        expected = analysis.random_log_det(np.array(size), 200)
        assert float(random) == pytest.approx(float(expected), rel=0.06, abs=2.0)


# Planted dynamics


def test_a_rotation_has_its_angle_its_period_and_no_contraction(data) -> None:
    result = probe.measure(affine(data, rotation(72)), data, **QUICK | dict(max_steps=12, token="mean"))
    assert result["angle"].values == pytest.approx(72, abs=0.01)
    assert result["update"].values == pytest.approx(2 * math.sin(math.radians(36)), abs=1e-4)
    expected = [math.cos(math.radians(72 * (3 - state))) for state in range(4)]
    assert result["cosine_to_final"].sel(token="cls").values == pytest.approx(expected, abs=1e-4)
    assert result["singular"].values == pytest.approx(1, abs=1e-4)
    assert np.abs(result["log_det"].values).max() < 1e-3 and np.abs(result["state_log_det"].values).max() < 1e-2
    assert result["recovery"].sel(step=0).values == pytest.approx(1, abs=1e-3)
    assert result["increment_cka"].values == pytest.approx(1, abs=1e-3)
    assert result["radius"].values == pytest.approx(1, abs=1e-4)
    moduli = np.hypot(*result["eigenvalue"].transpose("part", ...).values)
    assert moduli == pytest.approx(1, abs=1e-4)


def test_periods_and_fixed_points_are_found_image_by_image(data) -> None:
    turning = probe.measure(affine(data, rotation(90), n_steps=5), data, **QUICK | dict(max_steps=20))
    assert (turning["period"] == 4).all() and float(turning["periodic"].sel(form="state")) == 1
    assert float(turning["turn"]) == pytest.approx(0, abs=1e-4)
    settling = affine(data, 0.4 * torch.eye(16), torch.randn(16))
    result = probe.measure(settling, data, **QUICK | dict(max_steps=16))
    assert (result["period"] == 1).all() and float(result["fixed"].sel(form="direction")) == 1
    shrinking = probe.measure(affine(data, 0.5 * torch.eye(16)), data, **QUICK)
    assert (shrinking["period"].sel(form="direction") == 1).all()  # it shrinks for ever and turns nowhere
    assert (shrinking["period"].sel(form="state") == 0).all()
    assert float(shrinking["growth"]) == pytest.approx(0.5 ** (8 - 3)) and float(shrinking["turn"]) == pytest.approx(1)


def test_a_contraction_recovers_a_perturbation_at_its_rate(data) -> None:
    result = probe.measure(affine(data, 0.4 * torch.eye(16), torch.randn(16)), data, **QUICK)
    left = result["recovery"].sel(form="state")
    for step in range(3):
        expected = [np.nan] * step + [0.4 ** (state - step) for state in range(step, 4)]
        assert left.sel(step=step).values == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert result["log_det"].values == pytest.approx(16 * math.log(0.4), rel=1e-4)
    n = CONFIG.n_tokens * 16
    assert result["state_log_det"].values == pytest.approx(n * math.log(0.4), rel=1e-4)
    assert result["state_norm"].values == pytest.approx(0.4, rel=1e-4)
    assert result["state_log_det_error"].values == pytest.approx(0, abs=1e-2)


def test_a_state_that_overflows_ends_nowhere(data) -> None:
    result = probe.measure(affine(data, 1e6 * torch.eye(16)), data, **QUICK | dict(state_images=0, max_steps=12))
    assert float(result["overflowed"]) == 1 and (result["period"] == 0).all() and np.isnan(result["growth"])


# The measurement


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=fresh(model.config, 1).eval(), **QUICK)


def test_steps_are_measured_token_by_token(model, data, result) -> None:
    with torch.no_grad():
        z = torch.stack(list(motion.states_of(model, opened(data)))).double()  # [state image pos d]
    unit = z / z.norm(dim=-1, keepdim=True)
    update = (z[1:] - z[:-1]).norm(dim=-1) / z[:-1].norm(dim=-1)
    angle = (unit[1:] * unit[:-1]).sum(-1).acos().rad2deg()
    final, other = (unit * unit[-1]).sum(-1), torch.einsum("sipd,jpd->spij", unit, unit[-1])
    n, patches = len(data), unit[:, :, 1:]
    apart = ~torch.eye(n, dtype=torch.bool)
    for name, of in (("update", update), ("angle", angle), ("cosine_to_final", final)):
        expected = np.stack([of[..., 0].mean(1), of[..., 1:].mean((1, 2))])
        assert result[name].values == pytest.approx(expected, rel=1e-4), name
    null = other[..., apart].mean(-1)
    assert result["null_cosine_to_final"].values == pytest.approx(np.stack([null[:, 0], null[:, 1:].mean(1)]), abs=1e-5)
    same = torch.einsum("sipd,siqd->sipq", patches, patches)[..., ~torch.eye(16, dtype=torch.bool)].mean((1, 2))
    between = torch.einsum("sipd,sjqd->sijpq", patches, patches)[:, apart].mean((1, 2, 3))
    assert result["coherence"].values == pytest.approx(same.numpy(), abs=1e-5)
    assert result["null_coherence"].values == pytest.approx(between.numpy(), abs=1e-5)
    at_right_angles = update[..., 0].atan().rad2deg().mean(1).numpy()
    assert result["null_angle"].sel(token="cls").values == pytest.approx(at_right_angles, rel=1e-4)


def test_intervals_hold_the_number(result) -> None:
    for name in ("update", "coherence", "cka", "increment_cka", "participation_ratio", "stable_rank", "log_det"):
        low, value, high = (result[f"{name}{end}"].values for end in ("_low", "", "_high"))
        there = np.isfinite(value)
        assert there.any() and (low[there] <= value[there] + 1e-9).all() and (value[there] <= high[there] + 1e-9).all()
    half = (result["increment_cka_high"] - result["increment_cka"]).values
    assert np.allclose(np.diag(half), 0, atol=1e-6) and half[0, 1] > 1e-3


def test_batches_do_not_change_the_result(model, data) -> None:
    one, other = (probe.measure(model, data, **QUICK | dict(batch_size=size)) for size in (23, 4))
    for name in one.data_vars:
        assert np.allclose(one[name], other[name], rtol=1e-4, atol=1e-4, equal_nan=True), name


def test_a_photograph_with_several_items_counts_once(data) -> None:
    walk = Pass(data)
    walk.__dict__["about"] = dataclasses.replace(walk.about, photographs=np.arange(len(data)) // 2)
    assert probe.once_each(walk).data.indices == list(range(0, len(data), 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A bViT and a stacked ViT of another width, as files."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in (("bvit", {}), ("vit", dict(n_blocks=2, n_steps=2, d_model=24))):
        config = dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes), **changes)
        model = fresh(config, 0)
        about = dict(init_sha256=state_sha256(model.state_dict()), provenance={"seed": 0}, data="shapes-easy")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        save(folder / name / "ckpt.pt", model, **about)
    return folder


def test_two_models_are_compared_step_by_layer(runs, data, command) -> None:
    quick = QUICK | dict(jacobian_images=0, state_images=0)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in quick.items()]
    how = ["--limit", 23, "--device", "cpu", *options]
    code, said, _ = command("probes.dynamics", runs / "bvit", "--with", runs / "vit", *how)
    assert code == 0 and "CKA of increments with" in said
    result = results.read(runs / "bvit" / "dynamics.nc")
    assert result["cross_cka"].shape == (4, 3) and result["control_cross_increment_cka"].shape == (3, 2)
    first, second = (load(runs / name) for name in ("bvit", "vit"))
    part = limited(open_data("shapes-easy", like=first), 23)
    with torch.no_grad():
        a, b = ([z[:, 0].double().numpy() for z in motion.states_of(of, opened(part))] for of in (first, second))
    for s in range(1, 4):
        for t in range(1, 3):
            assert float(result["cross_cka"].sel(state=s, with_state=t)) == pytest.approx(
                written_out(a[s], b[t]), abs=1e-4
            )
    expected = written_out(a[2] - a[1], b[2] - b[1])
    assert float(result["cross_increment_cka"].sel(step=1, with_step=1)) == pytest.approx(expected, abs=1e-3)


def test_a_stacked_vit_ends_with_its_layers(data) -> None:
    model = moved(data, 0.1, n_blocks=3)
    result = probe.measure(model, data, **{name: of for name, of in QUICK.items() if name != "max_steps"})
    assert "returned" not in result and "recovery" in result and result.attrs["max_steps"] == 3
    assert "after 3 steps" not in analysis.table(result) and analysis.curve(result, "returned") is None
    with pytest.raises(InputError, match="--max-steps is 8; only a model of one block runs beyond its 3 steps"):
        probe.measure(model, data, **QUICK)


def test_one_step_and_no_head_are_enough(data) -> None:
    model = fresh(dataclasses.replace(CONFIG, n_steps=1, n_classes=0), 0).eval()
    result = probe.measure(model, data, **QUICK)
    assert result.sizes["lag"] == 7 and (result["increment_phase"] == -1).all()
    assert "step 1" in analysis.table(result) and analysis.figure(result).axes


def test_what_cannot_be_measured_is_one_sentence(model, data, runs) -> None:
    with pytest.raises(InputError, match="5 photographs are too few"):
        probe.measure(model, Subset(data.dataset, range(5)))
    for options, said in (
        (dict(sample=2), "--sample is 2"),
        (dict(max_steps=4), "--max-steps is 4, it must lie between 5 and 3000"),
        (dict(max_steps=10**9), "--max-steps is 1000000000, it must lie between 5 and 3000"),
        (dict(perturbation=0), "--perturbation is 0"),
        (dict(perturbation=math.nan), "--perturbation is nan"),
        (dict(perturbation=1e-9), "--perturbation is 1e-09, it must lie between 1e-05"),
        (dict(probes=1), "--probes is 1"),
        (dict(probes=10**9), "--probes is 1000000000"),
        (dict(iterations=1), "--iterations is 1"),
        (dict(iterations=10**9), "--iterations is 1000000000"),
        (dict(token="all"), "--token is 'all'"),
        (dict(jacobian_images=-1), "--jacobian-images is -1"),
        (dict(beside="nowhere"), "nowhere"),
    ):
        with pytest.raises(InputError, match=said):
            probe.measure(model, data, **options)
    with pytest.raises(InputError, match="its mean is"):
        probe.measure(moved(data, 0.1, mean=(0.1, 0.2, 0.3)), data, beside=str(runs / "vit"))


def test_a_diverged_model_beside_is_named(model, data, tmp_path) -> None:
    other = moved(data, 0.1)
    with torch.no_grad():
        other.core[0].mlp.fc2.weight.mul_(1e38)
    save(tmp_path / "ckpt.pt", other, data="shapes-easy")
    with pytest.raises(InputError, match="--with .*: its activations are not finite; the checkpoint diverged"):
        probe.measure(model, data, beside=str(tmp_path), **QUICK)


def test_lanczos_ends_with_the_dimensions_of_the_state(data) -> None:
    model = moved(data, 0.1, patch_size=16)
    every = model.config.n_tokens * model.config.d_model
    few, exact = Pass(limited(data, 1), batch_size=1), []
    with torch.no_grad():
        states = entering(model, opened(few.data))
    for t, state in enumerate(states):
        jacobian = torch.autograd.functional.jacobian(lambda z, t=t: model.run_steps(z, t, t + 1), state)
        jacobian = jacobian.reshape(every, every)
        exact.append(float(torch.linalg.matrix_norm(jacobian.double(), 2)))
    found = probe.of_state_jacobians(model, few, 2, 1000)["state_norm"].values
    assert np.allclose(found, exact, rtol=1e-4)


def test_jacobians_can_be_left_out(model, data) -> None:
    result = probe.measure(model, data, **QUICK | dict(jacobian_images=0, state_images=0))
    assert "singular" not in result and "state_log_det" not in result
    assert "largest |eigenvalue|" not in analysis.table(result)
    assert analysis.eigenvalues(result, 0) is None and len(analysis.figure(result).axes) > 8


def test_the_table_and_figures_show_nulls_and_the_untrained_model(result) -> None:
    table = analysis.table(result)
    for said in ("random direction", "of other images", "random as large", "untrained", "max-cut", "after 8 steps"):
        assert said in table
    assert {"trained", "untrained"} == set(analysis.frame(result)["model"])
    assert len(style.models(result)) == 2 and list(analysis.maps(result))[2] == "CKA of states, untrained"
