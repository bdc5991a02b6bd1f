"""Storage: folders on local disks and on S3 behind one interface, leases, retries, and sending in the background.

Knows nothing of MLflow, Ray or the content that it stores, and imports only `mcrnn.errors`. zarr and s3fs are imported
only where they are used.
"""
