"""A run's folder, its copy in MLflow, where a run came from, and the model registry.

MLflow is imported only where it is used; Ray and Optuna are not.
"""
