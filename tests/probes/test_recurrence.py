"""Run with: pytest tests/probes/test_recurrence.py"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from models import ViTConfig, checkpoint, open_data
from models.checkpoint import fresh
from models.errors import InputError
from models.origin import Origin
from probes import recurrence as probe
from tests.reference import slow_vit

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2)


@pytest.fixture(scope="module")
def data():
    return torch.utils.data.Subset(open_data("shapes-easy", like=CONFIG), range(0, 60, 2))


def made(data, **changes: object):
    """A model whose answers change from step to step."""
    classes = tuple(data.dataset.classes)
    model = fresh(dataclasses.replace(CONFIG, n_classes=len(classes), classes=classes, **changes), 0).eval()
    with torch.no_grad():
        model.head.weight.normal_()
        for block in model.core:
            block.mlp.fc2.weight.mul_(8)
            block.mlp.fc2.bias.normal_()
    model.origin = Origin("planted")
    return model


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return made(data)


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=model, batch_size=8)


@pytest.fixture(scope="module")
def logits(model, data) -> torch.Tensor:
    """[image state class] from the reference model, each number of steps run anew, in float64."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    images = [data[i][0].double() for i in range(len(data))]
    return torch.stack(
        [torch.stack([slow_vit.forward(image, weights, model.config, k) for k in range(13)]) for image in images]
    )


def test_every_curve_equals_running_a_slow_model_anew_for_every_number_of_steps(result, logits, data) -> None:
    labels = torch.tensor([data[i][1] for i in range(len(data))])
    logp = logits.log_softmax(-1)
    correct = logits.argmax(-1) == labels[:, None]
    assert np.allclose(result["accuracy"], correct.double().mean(0))
    assert np.allclose(result["loss"], -logp[torch.arange(len(labels)), :, labels].mean(0), rtol=1e-4)
    assert np.allclose(result["confidence"], logp.exp().amax(-1).mean(0), rtol=1e-4)
    assert np.allclose(result["entropy"], -(logp.exp() * logp).sum(-1).mean(0), rtol=1e-3)
    for label in labels.unique().tolist():
        assert np.allclose(result["class_accuracy"].sel(label=label), correct[labels == label].double().mean(0))
    assert (result["control_accuracy"].values == result["accuracy"].values).all()


def test_k_equal_to_t_is_the_plain_forward(result, model, data) -> None:
    images, labels = (
        torch.stack([data[i][0] for i in range(len(data))]),
        torch.tensor([data[i][1] for i in range(len(data))]),
    )
    with torch.no_grad():
        answer = model(images).argmax(-1)
    assert float(result["accuracy"].sel(state=3)) == pytest.approx((answer == labels).double().mean().item())


def test_the_update_is_that_of_the_residual_stream(result, model, data) -> None:
    images = torch.stack([data[i][0] for i in range(len(data))])
    with torch.no_grad():
        _, cache = model.run_with_cache(images)
    for t in range(3):
        before, after = cache["resid_pre", t].flatten(1), cache["resid_post", t].flatten(1)
        expected = ((after - before).norm(dim=1) / before.norm(dim=1)).mean()
        assert float(result["update"].sel(state=t + 1)) == pytest.approx(expected.item(), rel=1e-4)
    assert np.isnan(result["update"].sel(state=0))


def test_answers_settle_where_a_search_by_hand_finds_it(result, logits) -> None:
    for name, last in (("settled", 3), ("settled_by_max", 12)):
        for answers, found in zip(logits.argmax(-1).tolist(), result[name].values, strict=True):
            assert found == min(k for k in range(last + 1) if len(set(answers[k : last + 1])) == 1)


def test_leaving_early_equals_a_loop_over_images_and_steps(result, logits, data) -> None:
    p = logits[:, 1:4].softmax(-1)
    sure = {"confidence": p.amax(-1), "entropy": 1 + (p * p.log()).sum(-1) / np.log(p.shape[-1])}
    for criterion, certainty in sure.items():
        row = result.sel(criterion=criterion)
        for threshold in (0.0, 0.3, 0.7, 1.0):
            place = int(np.abs(row["threshold"].values - threshold).argmin())
            limit = float(row["threshold"][place])
            at = [next((k for k in range(3) if certainty[i, k] >= limit), 2) for i in range(len(data))]
            correct = [logits[i, 1 + k].argmax().item() == data[i][1] for i, k in enumerate(at)]
            assert float(row["exit_steps"][place]) == pytest.approx(np.mean(at) + 1)
            assert float(row["exit_accuracy"][place]) == pytest.approx(np.mean(correct))


def test_batches_change_nothing(result, model, data) -> None:
    other = probe.measure(model, data, batch_size=7)
    for name in probe.CURVES:
        assert np.allclose(other[name], result[name], rtol=1e-5, equal_nan=True)


def test_states_that_overflow_within_the_trained_steps_stop_it(data) -> None:
    model = made(data)
    with torch.no_grad():
        model.core[0].mlp.fc2.bias[0] = 1e38
    with pytest.raises(InputError, match=r"not finite from step 1 \(blocks.0\) on"):
        probe.measure(model, data, batch_size=16)


def test_states_that_overflow_later_are_counted_and_the_first_is_named(data) -> None:
    model = made(data)
    with torch.no_grad():
        model.core[0].mlp.fc2.bias[0] = 4e18  # whose square, in the norm, overflows after five steps
        expected = [model(data[0][0][None], n_steps=k).isfinite().all().item() for k in range(13)]
    assert any(expected) and not all(expected)
    found = probe.measure(model, data, batch_size=16)
    assert found.attrs["overflow_state"] == expected.index(False)
    assert ((found["n_finite"] == len(data)).values == expected).all()
    assert (found["accuracy"].values[~np.array(expected)] == 0).all() and np.isnan(found["loss"].values[-1])


def test_a_stacked_model_stops_at_its_last_block_and_refuses_more(data) -> None:
    model = made(data, n_blocks=3)
    assert probe.measure(model, data).sizes["state"] == 4
    with pytest.raises(InputError, match="3"):
        probe.measure(model, data, max_steps=4)


def test_bad_input_is_one_sentence(model, data) -> None:
    with pytest.raises(InputError, match="--max-steps is 2, it must be at least the model's 3 steps"):
        probe.measure(model, data, max_steps=2)
    with pytest.raises(InputError, match="no classifier"):
        probe.measure(made_headless(), data)
    strange = made(data)
    strange.config = dataclasses.replace(
        strange.config, classes=tuple(f"other {i}" for i in range(strange.config.n_classes))
    )
    with pytest.raises(InputError, match="has no class"):
        probe.measure(strange, data)


def made_headless():
    model = fresh(dataclasses.replace(CONFIG, n_classes=0), 0).eval()
    model.origin = Origin("planted")
    return model


def test_the_command_writes_its_result_and_its_figure(model, tmp_path: Path, command) -> None:
    source, figure = tmp_path / "ckpt.pt", tmp_path / "figure.html"
    checkpoint.save(source, model, data="shapes-easy", provenance={"seed": 0})
    options = ("--limit", 70, "--batch-size", 16, "--device", "cpu", "--max-steps", 5, "--no-control")
    code, printed, _ = command("probes.recurrence", source, *options, "--figure", figure)
    assert code == 0 and figure.stat().st_size > 10_000
    assert (
        "recurrence: 70 images, chance 5.0 %, best constant answer 10.0 %, trained for 3 steps" in printed
        and "step 5 " in printed
    )
    result = xr.load_dataset(tmp_path / "recurrence.nc", engine="h5netcdf")
    assert result.sizes["state"] == 6 and result.attrs["checkpoint_sha256"]
    code, _, complaint = command("probes.recurrence", source, "--max-steps", 2)
    assert code == 2 and "--max-steps is 2" in complaint


def test_chance_is_that_of_the_models_classes_beside_the_best_constant_answer(data) -> None:
    """Data of two classes leave a model of twenty its twenty answers."""
    two = torch.utils.data.Subset(data.dataset, [i for i in range(200) if data.dataset.labels[i] in (3, 7)])
    subset = Renamed(two, (3, 7))
    result = probe.measure(made(data), subset)
    assert result.attrs["chance"] == 1 / 20
    counts = np.bincount([subset[i][1] for i in range(len(subset))])
    assert result.attrs["constant"] == counts.max() / len(subset)


class Renamed(torch.utils.data.Dataset):
    """Images of a few classes, as a data set that has no others."""

    def __init__(self, subset, labels: tuple[int, ...]):
        whole = subset.dataset
        for name in ("spec", "split", "fingerprint", "has_masks", "image_size"):
            setattr(self, name, getattr(whole, name))
        self.subset, self.place = subset, {label: i for i, label in enumerate(labels)}
        self.classes = tuple(whole.classes[label] for label in labels)
        self.labels = np.array([self.place[int(whole.labels[i])] for i in subset.indices])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        image, label, mask = self.subset[i]
        return image, self.place[label], mask
