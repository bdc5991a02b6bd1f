"""Reading a field store: the format contract, the manifest, the store, splits, windows, descriptions and checks.

Writing stores is the business of `data_prep`. zarr is imported only where an array is opened.
"""
