"""Forecasts of a user's own data: read it, check that it fits a model, continue it, and label the result.

Knows nothing of where models come from and of how they were trained. The command `mcrnn.forecast` and the server
`mcrnn.serving` both use it, so that they refuse the same input with the same sentence.
"""
