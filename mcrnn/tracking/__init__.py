"""The folder of a run, its copy in MLflow, where a run came from, and the model registry.

Imports MLflow only within functions, and neither Ray nor Optuna, so that training on a worker needs none of them.
"""
