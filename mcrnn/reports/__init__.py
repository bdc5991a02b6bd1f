"""Everything that a person reads: tables, figures, animations, the HTML page and `forecasts.zarr`.

Writes what `mcrnn.evaluation` and `mcrnn.search` computed; computes nothing of its own.
"""
