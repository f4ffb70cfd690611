"""Reads results, those of earlier versions as well: they get today's names of dimensions and variables."""

from pathlib import Path

import xarray as xr

from analyses import style


def read(path: str | Path) -> xr.Dataset:
    """A result in memory, its file closed. Raises ValueError, in one sentence, where there is none that can be read."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            result = opened.load()
    except FileNotFoundError:
        raise ValueError(f"there is no result {path}") from None
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable result ({type(error).__name__}); make it anew") from None
    return updated(result)


def updated(result: xr.Dataset) -> xr.Dataset:
    """A result under today's names; one that has them already as it is."""
    names = {"tolerance": "radius"} if "hit_ratio" in result else {}
    names |= {"method": "recipe"} if "picture" in result else {"method": "cut"} if "svd_accuracy" in result else {}
    result = result.rename({old: new for old, new in names.items() if old in result.dims})
    if "tolerance_pixels" in result.attrs:
        result.attrs["radius_pixels"] = result.attrs.pop("tolerance_pixels")
    if isinstance(result.attrs.get("classes"), str):  # NetCDF makes a word of a list of one
        result.attrs["classes"] = [result.attrs["classes"]]
    together = f"{style.PREFIX}companions"
    if together in result:
        values = result[together]
        apart = {f"{style.PREFIX}{name}": values.sel(companion=name, drop=True) for name in values.companion.values}
        result = result.drop_vars(together).assign(apart)
    return result
