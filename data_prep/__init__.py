"""Make field stores, on which `mcrnn` trains, from equations and from NetCDF files.

The commands are `navier_stokes`, `netcdf` and `inspect`. A source (`navier_stokes_source`, `netcdf_source`) computes or
reads values, a plan (`plan`) says what the store is to hold, and `builder` writes it in the format of
`mcrnn.data.store_format`. This package knows nothing of models and training.
"""
