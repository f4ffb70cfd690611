"""Run with: pytest tests/probes/test_cost.py"""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from analyses import cost as analysis
from models import ViTConfig, checkpoint, flops, load
from models.errors import InputError
from probes import cost as probe
from probes.methods import metering

SHAPES = {
    "bvit": {},
    "vit": {"n_blocks": 3},
    "registers": {"n_registers": 4},
    "step embedding": {"step_embedding": "learned"},
    "no head": {"n_classes": 0},
    "mean": {"pool": "mean"},
}


def small(**fields: object) -> ViTConfig:
    return ViTConfig.preset("bvit_easy", **({"n_steps": 3, "d_model": 16, "n_heads": 2, "n_classes": 20} | fields))


@pytest.fixture(scope="module")
def result():
    return probe.measure(checkpoint.fresh(small(), 0).eval(), None, rounds=3, batch_size=4)


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_formula_torch_s_counter_and_multiplications_written_out_agree(fields):
    config = small(**fields)
    image = torch.zeros(1, 3, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        checkpoint.fresh(config, 0)(image)
    patches = (config.image_size // config.patch_size) ** 2
    tokens, d = 1 + config.n_registers + patches, config.d_model
    dense = 4 * d * d + 2 * d * config.d_mlp  # q, k, v, o, and the two of the MLP, per token
    attended = 2 * tokens * tokens * d  # scores, and their weighting of the values
    multiplications = patches * 3 * config.patch_size**2 * d + 3 * (tokens * dense + attended) + d * config.n_classes
    assert flops.of_forward(config) == counter.get_total_flops() == 2 * multiplications


def test_both_models_cost_the_same_operations_and_t_times_the_parameters_of_a_block(result):
    config = small()
    parameters = dict(zip(result["model"].values, result["parameters"].values, strict=True))
    block = sum(p.numel() for p in checkpoint.fresh(config, 0).core[0].parameters())
    assert parameters["vit"] - parameters["bvit"] == 2 * block
    assert int(result["flops_forward"]) == flops.of_forward(config)
    assert len(set(result["flops"].values.tolist())) == 1


def test_every_round_has_a_time_and_training_needs_more_memory(result):
    assert result["seconds_of_round"].shape == (2, 2, 3) and (result["seconds_of_round"] > 0).all()
    memory = result["memory"]
    assert (memory.sel(phase="training") > memory.sel(phase="inference")).all()
    assert (memory.sel(model="vit") > memory.sel(model="bvit")).all()


def test_the_peak_of_memory_is_what_lives_at_once():
    model = torch.nn.Linear(2, 2, bias=False)  # 16 bytes of weights

    def run() -> None:
        first = torch.zeros(1000)
        second = first + 1  # 8,000 bytes alive
        del first
        _ = second[:10] + 1  # 4,000 + 40
        del second
        torch.zeros(500)

    assert metering.peak_memory(run, model, torch.device("cpu")) == 8000 + 16


def test_a_model_that_is_the_stacked_vit_stands_alone():
    alone = probe.measure(checkpoint.fresh(small(n_blocks=3), 0).eval(), None, rounds=1, batch_size=2)
    assert alone["model"].values.tolist() == ["vit"]
    assert np.isnan(analysis.ratio(alone, "training")).all()


def test_another_count_than_the_formula_s_is_an_error(monkeypatch):
    monkeypatch.setattr(flops, "of_forward", lambda config: 1)
    with pytest.raises(InputError, match="the formula 1"):
        probe.measure(checkpoint.fresh(small(), 0).eval(), None, rounds=1, batch_size=2)


def test_ratios_are_of_runs_in_turn(result):
    planted = result.copy(deep=True)
    planted["seconds_of_round"][:] = [[[1, 2, 4], [3, 6, 12]], [[2, 4, 8], [3, 3, 3]]]
    assert analysis.ratio(planted, "inference") == (0.5, 0.5, 0.5)
    assert analysis.ratio(planted, "training") == (2, 1, 4)
    assert "inference: the bViT takes 0.50 times" in analysis.table(planted)


def test_the_command_takes_a_preset_and_writes_its_file(command, tmp_path):
    out = tmp_path / "cost.nc"
    options = ("--rounds", 1, "--batch-size", 2, "--out", out, "--device", "cpu")
    code, printed, _ = command("probes.cost", "bvit_easy", *options)
    assert code == 0 and "stacked ViT" in printed and out.exists()
    assert command("probes.cost", "bvit_huge")[0] == 2
    assert load("bvit_easy").origin.weights == "init"
