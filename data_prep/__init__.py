"""Make field stores, on which `mcrnn` trains, from equations and from gridded fields.

The commands are `navier_stokes`, `convert` and `inspect`. A source (`navier_stokes_source`, `field_source`) computes or
reads values, a plan (`plan`) says what the store is to hold, and `builder` writes it in the format of
`mcrnn.data.store_format`. This package knows nothing of models and training.
"""
