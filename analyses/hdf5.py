"""What a result's file may be, before anything of it is believed: HDF5 that stands for itself and holds what it says.

A file may come from anywhere, and HDF5 is told by it where to read: from other files, through links, over as many bytes
as it claims. `refuse_foreign` looks at the structure alone. A damaged file can still make the library loop or crash,
so `check` reads it once in a process of its own that may be ended.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from etils import epy

with epy.lazy_imports():  # which the child does without
    import xarray as xr

try:
    import resource
except ImportError:  # on Windows, where the time limit alone holds
    resource = None

MOST = 2**29  # bytes of a file, and of all variables in it
GROWS = 1100  # more than deflate can shrink anything
SMALL = 2**24  # bytes that any file may claim: names, fill values, texts
CPU, PATIENCE = 5, 60  # seconds of the processor, which a loop uses up, and of the clock, on a machine that is busy
ROOM = 2**29  # bytes of memory, beside three times what the file is and claims

sound: set[bytes] = set()  # hashes of content that a child of this process has read

CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from analyses import hdf5; hdf5.read_standard_input()"


def bytes_of(path: Path) -> bytes:
    """The content of a file of bearable size. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no result {path}")
    if path.stat().st_size > MOST:
        raise ValueError(f"{path} is larger than {MOST >> 20} MB, which no result is")
    return path.read_bytes()


def refuse_foreign(content: bytes) -> int:
    """The bytes that a file claims. Raises ValueError for HDF5 that reads other files, or that claims more than it can
    hold. Nothing is read.
    """
    with h5py.File(io.BytesIO(content), "r") as file:
        claimed = sum(claimed_by(dataset) for dataset in datasets(file))
    if claimed > min(MOST, max(SMALL, GROWS * len(content))):
        raise ValueError(f"it claims {claimed >> 20} MB of numbers in {len(content)} bytes")
    return claimed


def datasets(group: h5py.Group) -> Iterator[h5py.Dataset]:
    """Every variable of a file without groups, as results are."""
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name!a} is a link")
        member = group[name]
        if not isinstance(member, h5py.Dataset):
            raise ValueError(f"{name!a} is no variable")
        yield member


def claimed_by(dataset: h5py.Dataset) -> int:
    """The bytes that reading a variable takes, as its header states them."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name!a} is stored in other files")
    return max(math.prod(dataset.shape or ()), math.prod(dataset.chunks or ())) * dataset.dtype.itemsize


def check(content: bytes) -> None:
    """Raises ValueError for content that cannot be read whole, in time, and in bearable memory."""
    digest = hashlib.sha256(content).digest()
    if digest in sound:
        return
    command = [sys.executable, "-P", "-c", CHILD, str(Path(__file__).parents[1])]
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread would reserve memory
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=PATIENCE, env=alone)
    except subprocess.TimeoutExpired:
        raise ValueError("reading it does not end") from None
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        raise ValueError("reading it does not end")
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace").strip()[-200:] or "it breaks the HDF5 library")
    sound.add(digest)


# Reading what was checked

IN_NETCDF = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST"}  # attributes that stand for its structure
IN_NETCDF |= {"_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties"}


def read(content: bytes) -> xr.Dataset:
    """What xarray's own reader of HDF5 gives, to the attribute, in a fifth of its time: that one opens every dimension
    anew for every variable, which takes seconds for a result of two hundred.
    """
    with h5py.File(io.BytesIO(content), "r") as file:
        variables = {name: variable(file, name) for name in file if not is_bare_dimension(file[name])}
        return xr.decode_cf(xr.Dataset(variables, attrs=attributes(file)), decode_times=False)


def is_bare_dimension(dataset: h5py.Dataset) -> bool:
    """Whether it only says how long a dimension is that has no coordinate, in NetCDF's words."""
    return dataset.attrs.get("NAME", b"").startswith(b"This is a netCDF dimension but not a netCDF variable")


def variable(file: h5py.File, name: str) -> xr.Variable:
    dataset = file[name]
    values = (dataset.asstr() if h5py.check_string_dtype(dataset.dtype) else dataset)[()]
    if dataset.is_scale:
        dims = [name]
    else:
        dims = [file[reference[0]].name[1:] for reference in dataset.attrs.get("DIMENSION_LIST", ())]
    return xr.Variable(dims, values, attributes(dataset))


def attributes(of: h5py.File | h5py.Dataset) -> dict[str, object]:
    """Attributes but NetCDF's own; a list of one is what it holds, as NetCDF has it."""
    found = {name: of.attrs[name] for name in of.attrs if name not in IN_NETCDF}
    lists = {name: list(value) if value.dtype == object else value for name, value in found.items() if np.ndim(value)}
    return found | {name: value[0] if len(value) == 1 else value for name, value in lists.items()}


def refuse_long_text(content: bytes) -> None:
    """Reads all there is. Raises ValueError for texts that are long because a file may name one of them many times."""
    with h5py.File(io.BytesIO(content), "r") as file:
        length = sum(map(length_of, file.attrs.values()))
        for dataset in datasets(file):
            length += length_of(dataset[()]) + sum(map(length_of, dataset.attrs.values()))
    if length > SMALL:
        raise ValueError(f"its texts take {length >> 20} MB")


def length_of(value: object) -> int:
    """How long the texts of a variable or an attribute are together; 0 for numbers."""
    values = np.asarray(value)
    return sum(len(text) for text in values.ravel() if isinstance(text, str | bytes)) if values.dtype == object else 0


def read_standard_input() -> None:
    """The work of the process that `check` starts."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    content = sys.stdin.buffer.read()
    try:
        claimed = refuse_foreign(content)
        if resource is not None:
            room = ROOM + 3 * (len(content) + claimed)
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
        refuse_long_text(content)
    except MemoryError:
        sys.exit("reading it takes more memory than it claims")
    except Exception as error:  # a damaged file raises anything
        said = str(error) if type(error) is ValueError else type(error).__name__
        sys.exit(" ".join(said.split())[:200])
