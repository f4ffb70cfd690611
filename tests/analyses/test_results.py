"""Run with: pytest tests/analyses/test_results.py"""

import numpy as np
import pytest
import xarray as xr

from analyses import hdf5, results, style

from .conftest import RUNS, SHIPPED, shipped


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_results_are_read_under_today_s_names(name: str) -> None:
    result = shipped(name)
    assert not {"tolerance", "method", "drop", "skipna"} & set(result.dims)
    assert results.updated(result).identical(result)


def old_pointing_game() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "hit_ratio": (("tolerance", "step", "head"), rng.random((2, 3, 2))),
            "mass": (("step", "head"), rng.random((3, 2))),
            "chance": ("companion", [0.1, 0.2]),
            "control_companions": (("companion", "step", "head"), rng.random((2, 3, 2))),
        },
        coords={"tolerance": [0, 15], "step": range(3), "head": range(2), "companion": ["mass", "lift"]},
        attrs={"tolerance_pixels": [0.0, 4.3]},
    )


def test_an_old_pointing_game_is_selected_by_keywords() -> None:
    old = old_pointing_game()
    new = results.updated(old.copy(deep=True))
    assert (new["hit_ratio"].sel(radius=15).values == old["hit_ratio"].values[1]).all()
    assert new.attrs == {"radius_pixels": [0.0, 4.3]}


def test_companions_of_the_untrained_model_are_variables_of_their_own() -> None:
    old = old_pointing_game()
    new = results.updated(old)
    assert set(style.models(new)["untrained"]) == {"mass", "lift"}
    for i, name in enumerate(("mass", "lift")):
        values = style.untrained(new, name)
        assert values.dims == ("step", "head") and (values.values == old["control_companions"].values[i]).all()
    assert "control_companions" not in new and "companion" in new["chance"].dims


def test_methods_of_old_results_are_recipes_and_cuts() -> None:
    assert shipped("demo/neurons").sel(recipe="maco")["activation"].dims == ("step", "neuron")
    assert shipped("demo/rank")["svd_accuracy"].sel(cut="plain").dims == ("rank",)


@pytest.mark.parametrize("name", {name.partition("/")[2]: name for name in SHIPPED}.values())
def test_a_file_is_read_as_xarray_s_own_reader_does(name: str) -> None:
    path = RUNS / f"{name}.nc"
    xr.testing.assert_identical(hdf5.read(path.read_bytes()), xr.load_dataset(path, engine="h5netcdf"))


def test_every_kind_of_variable_is_read_as_xarray_s_own_reader_does(tmp_path) -> None:
    texts = np.array([["x", "ü"], ["", "long"]])
    written = xr.Dataset(
        {
            "text": (("image", "token"), texts),
            "is_right": ("image", [True, False]),
            "pixels": ("image", np.array([0, 255], np.uint8)),
            "missing": (("token", "image"), [[np.nan, 1.0], [2.0, 3.0]]),
            "nothing": ("pair", np.zeros(0)),
            "number": ((), 3),
            "word": ((), "word"),
        },
        coords={"image": ["m", "n"], "name": ("token", ["k", "l"]), "level": ((), 1.5)},
        attrs={"note": "", "classes": ["a", "b"], "one": ["a"], "rate": [1.0], "counts": [1, 2], "seed": 3},
    )
    written.to_netcdf(tmp_path / "all.nc", engine="h5netcdf")
    content = (tmp_path / "all.nc").read_bytes()
    xr.testing.assert_identical(hdf5.read(content), xr.load_dataset(tmp_path / "all.nc", engine="h5netcdf"))


def test_one_class_is_still_a_list_of_classes(tmp_path) -> None:
    path = tmp_path / "one.nc"
    xr.Dataset({"length": ("step", [1.0])}, attrs={"classes": ["cat"]}).to_netcdf(path, engine="h5netcdf")
    assert results.read(path).attrs["classes"] == ["cat"]


def test_the_file_is_closed(tmp_path) -> None:
    path = tmp_path / "one.nc"
    xr.Dataset({"length": ("step", [1.0, 2.0])}).to_netcdf(path, engine="h5netcdf")
    result = results.read(path)
    xr.Dataset({"length": ("step", [3.0, 4.0])}).to_netcdf(path, engine="h5netcdf")
    assert result["length"].values.tolist() == [1, 2] and results.read(path)["length"].values.tolist() == [3, 4]


@pytest.mark.parametrize("content", [None, b"", b"not a result", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path, content) -> None:
    path = tmp_path / "bad.nc"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.nc") as error:
        results.read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no result"):
        results.read(tmp_path)
