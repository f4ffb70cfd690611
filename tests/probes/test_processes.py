"""Every probe under several processes leaves the file of one: integers equal, floats to 1e-6.

Starting a process costs more than a small probe, so one launcher forks each group of processes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from models import ViTConfig, checkpoint, open_data
from models.checkpoint import fresh
from tests.test_house import PROBES
from tests.warm import python

SMALL = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)
OPTIONS = {
    "pointing_game": dict(upsample="bilinear"),
    "neurons": dict(neurons=[3, 5], iterations=2, copies=1, n_top=3),
    "rank": dict(accuracy_images=11),
    "trajectories": dict(images=15, neighbors=4),
    "recurrence": dict(max_steps=4),
    "ablation": dict(images=11, how="resample"),
    "attribution": dict(images=9, exact=4, points=2, checked=3, corrupt="image"),
    "patching": dict(pairs=4, maps=1, shifts=2, _right=False),
    "intervention": dict(images=11, max_steps=4, what=["damp", "late_cls"]),
    "lens": dict(updates=3, jacobian_images=8),
    "dynamics": dict(sample=8, max_steps=6, jacobian_images=2, state_images=2, probes=2, iterations=4),
    "factors": dict(fit_images=7),
    "outliers": dict(neurons=3),
    "dictionary": dict(updates=3, k=2, effects=2),
    "cost": dict(rounds=1),
    "transfer": dict(seeds=1, epochs=1, train_limit=12, train_batch=12, rank=2),
    "prune": dict(data="shapes-easy:48", fields=("n_steps=2", "d_model=8", "n_heads=2"), val_limit=11),
}
LAUNCH = """
import importlib, json, os, socket, sys, traceback
from pathlib import Path
from probes import probe
from probes.methods.plan import Plan
source, out, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
modules = {name: importlib.import_module(f"probes.{name}") for name in options}

def run_all(folder):
    for name, chosen in options.items():
        if name == "prune":
            plan = Plan(rounds=1, epochs=2, graft_epochs=1, replicates=1, batch_size=12, optimizer="adamw")
            modules[name].prune(plan=plan, out=folder / "prune", device="cpu", **chosen)
        else:  # 17 images in 4 batches: 2 and 3 processes have unequal shares
            common = probe.Common(str(source), limit=17, out=folder / f"{name}.nc", device="cpu", batch_size=5)
            probe.answer(modules[name].measure, common, chosen)

def child(rank, world, port):
    if world > 1:
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                           MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        run_all(out / str(world))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

for world in (1, 2, 3):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [os.fork() or child(rank, world, port) for rank in range(world)]
    if any(os.waitpid(pid, 0)[1] for pid in children):
        sys.exit(f"{world} processes failed")
"""


@pytest.fixture(scope="module")
def results(source, tmp_path_factory) -> dict[int, dict[str, xr.Dataset]]:
    """The result of every probe, by number of processes."""
    out = tmp_path_factory.mktemp("results")
    done = python("-c", LAUNCH, source, out, json.dumps(OPTIONS))
    assert done.returncode == 0, done.stderr[-4000:]
    files = {name: "prune/prune.nc" if name == "prune" else f"{name}.nc" for name in OPTIONS}
    return {
        n: {name: xr.load_dataset(out / str(n) / file, engine="h5netcdf") for name, file in files.items()}
        for n in (1, 2, 3)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    model = fresh(ViTConfig.from_dict(SMALL.to_dict() | {"classes": open_data("shapes-easy").classes}), 0)
    path = tmp_path_factory.mktemp("source") / "ckpt.pt"
    sha256 = checkpoint.state_sha256(model.state_dict())
    checkpoint.save(path, model, data="shapes-easy", init_sha256=sha256, provenance={"seed": 0})
    return path


def test_every_probe_is_here() -> None:
    assert sorted(OPTIONS) == sorted(PROBES)


@pytest.mark.parametrize("probe", OPTIONS)
@pytest.mark.parametrize("n_processes", [2, 3])
def test_several_processes_leave_the_file_of_one(results, n_processes: int, probe: str) -> None:
    one, several = results[1][probe], results[n_processes][probe]
    assert set(one.variables) == set(several.variables)
    for name, expected in one.variables.items():
        if "seconds" in name or name == "memory":
            continue  # measured anew, never twice the same
        if expected.dtype.kind == "f":
            atol = 1e-6 * np.nanmax(np.abs(expected.values), initial=1.0)
            assert np.allclose(several[name], expected, rtol=1e-6, atol=atol, equal_nan=True), name
        else:
            assert (several[name].values == expected.values).all(), name
    assert any(name.startswith("control_") for name in one) or probe in ("prune", "cost")
