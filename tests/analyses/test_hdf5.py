"""Files that are no results: those that read other files, claim too much, or are damaged; and whose a result is."""

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from analyses import hdf5, results


def zeros(file: h5py.File) -> None:
    for i in range(40):
        file.create_dataset(f"zeros{i}", data=np.zeros(2**21), chunks=(2**21,), compression="gzip")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
    file.create_virtual_dataset("x", layout)


FOREIGN: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external storage": (
        lambda file: file.create_dataset("x", (100,), "u1", external=[("/etc/passwd", 0, 100)]),
        "other files",
    ),
    "virtual storage": (virtual, "other files"),
    "external link": (lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/x.nc", "x")), "link"),
    "soft link": (lambda file: file.__setitem__("x", h5py.SoftLink("/y")), "link"),
    "group": (lambda file: file.create_group("x"), "no variable"),
    "30000 x 25000": (lambda file: file.create_dataset("x", (30000, 25000), "u1", chunks=True), "claims 715 MB"),
    "4 TB": (lambda file: file.create_dataset("x", (2**39,), "f8", chunks=(1024,)), "claims 4194304 MB"),
    "huge chunk": (
        lambda file: file.create_dataset("x", (9,), "f8", chunks=(2**28,), maxshape=(None,)),
        "claims 2048 MB",
    ),
    "chunks of zeros": (zeros, "claims 640 MB"),
    "steps without end": (lambda file: file.create_dataset("x", (9,), "S4000000"), "claims 34 MB"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_structure_is_refused_before_anything_is_read(what, tmp_path):
    make, said = FOREIGN[what]
    with h5py.File(tmp_path / "x.nc", "w") as file:
        make(file)
    with pytest.raises(ValueError, match=said):
        hdf5.refuse_foreign((tmp_path / "x.nc").read_bytes())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("results") / "small.nc"
    xr.Dataset(
        {"a": ("step", np.arange(3.0)), "b": ("image", ["x", "yy"])}, attrs={"note": "n", "classes": ["x"]}
    ).to_netcdf(path, engine="h5netcdf")
    return path


def test_a_result_is_read_as_it_was_written(small):
    assert results.read(small).drop_attrs().identical(xr.load_dataset(small, engine="h5netcdf").drop_attrs())


def test_reading_that_does_not_end_is_ended(small, monkeypatch):
    monkeypatch.setattr(hdf5, "sound", set())
    monkeypatch.setattr(hdf5, "CHILD", "while True: pass")
    monkeypatch.setattr(hdf5, "PATIENCE", 1)
    with pytest.raises(ValueError, match=r"small\.nc is not a readable result \(reading it does not end\)"):
        results.read(small)


def test_a_library_that_breaks_is_one_sentence(small, monkeypatch):
    monkeypatch.setattr(hdf5, "sound", set())
    monkeypatch.setattr(hdf5, "CHILD", "import os; os.abort()")
    with pytest.raises(ValueError, match="breaks the HDF5 library"):
        results.read(small)


@pytest.mark.parametrize(("times", "said"), [(100, "its texts take 95 MB"), (3000, "")], ids=["100 MB", "3 GB"])
def test_a_text_that_is_named_many_times_over_is_refused(times, said, tmp_path):
    """A variable of texts holds references; written by hand, all of them lead to the one text of a megabyte."""
    with h5py.File(tmp_path / "x.nc", "w") as file:
        one = file.create_dataset("one", data="t" * 10**6, dtype=h5py.string_dtype())
        many = file.create_dataset("many", times, h5py.string_dtype(), chunks=(times,), compression="gzip")
        many[:] = "a"
        place = one.id.get_offset()
    with h5py.File(tmp_path / "x.nc", "r+") as file:
        reference = (tmp_path / "x.nc").read_bytes()[place : place + 16]
        file["many"].id.write_direct_chunk((0,), zlib.compress(reference * times))
    with pytest.raises(ValueError, match=f"is not a readable result .*{said}"):
        results.read(tmp_path / "x.nc")


def test_more_steps_than_there_can_be_are_refused(tmp_path):
    xr.Dataset({"a": ("step", np.zeros(2001))}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="claims 2001 along step"):
        results.read(tmp_path / "a.nc")


def test_damaged_bytes_give_a_result_or_one_sentence(small, tmp_path):
    """What a process of its own would do with each is done here, since most damage neither loops nor crashes."""
    whole, rng, refused = small.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        try:
            hdf5.refuse_foreign(bytes(content))
        except Exception:  # `read` makes one sentence of anything
            refused += 1
    assert 0 < refused < 300  # damage to plain numbers is none that a check of the format can see


def test_a_result_knows_another_model(small, tmp_path):
    path = shutil.copy(small, tmp_path / "rank.nc")
    xr.load_dataset(small, engine="h5netcdf").assign_attrs(checkpoint_sha256="0" * 64).to_netcdf(
        path, engine="h5netcdf"
    )
    assert results.of_checkpoint(path).attrs["note"] == "n"  # nobody knows
    (tmp_path / "ckpt.pt").write_bytes(b"first")
    with pytest.raises(ValueError, match="of another model .*checkpoint 00000000, the one here is"):
        results.of_checkpoint(path)
    same = results.read(path).assign_attrs(checkpoint_sha256=results.sha256(tmp_path / "ckpt.pt"))
    assert results.other_model(same, results.sha256(tmp_path / "ckpt.pt")) == ""
    (tmp_path / "ckpt.pt").write_bytes(b"trained anew")
    assert "measured on the checkpoint" in results.other_model(same, results.sha256(tmp_path / "ckpt.pt"))
