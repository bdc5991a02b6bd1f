"""Where bytes live: local folders and S3 behind one interface, leases, retries and sending in the background.

Knows nothing of MLflow, Ray or what the bytes mean. zarr and s3fs are imported only where they are used.
"""
