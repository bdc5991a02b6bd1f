"""The tables of the paper: its trainings as runs that continue, what they will take, and their errors side by side.

This package reads the settings from `search_spaces/paper/`, trains in this process by `mcrnn.runners`, and evaluates by
`mcrnn.evaluation`. It knows neither Ray nor Optuna.
"""
