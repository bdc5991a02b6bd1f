"""The training loop in plain PyTorch: session protocol, trainer, validation, learning rate, checkpoints and record.

Imports neither Ray, MLflow nor Optuna.
"""
