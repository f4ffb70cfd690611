"""One file, one measurement, one command: each watches a model over a data set and gives an ``xarray.Dataset``."""
