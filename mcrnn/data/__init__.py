"""Read field stores: the format, the manifest, the store, its splits and windows, and what a model must know of them.

Stores are written by `data_prep`. Modules of this package import zarr and the codecs only inside the functions that
read arrays, because served models import the package without them. They must not import Ray, MLflow or Optuna.
"""
