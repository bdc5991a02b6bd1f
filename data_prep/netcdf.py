"""The name that `data_prep.convert` had when it read NetCDF files only. It is kept, and does the same.

    python -m data_prep.netcdf 'geopotential_500_5.625deg/*.nc' data/z500.zarr --variable z \\
           --train 1979:2014 --val 2015:2016 --test 2017:2018 --boundary cylinder
"""

from __future__ import annotations

from data_prep.convert import convert as convert
from mcrnn.cli import main

if __name__ == "__main__":
    main(convert)
