"""From NetCDF files and equations to chunked, checksummed Zarr stores that `mcrnn` trains on."""
