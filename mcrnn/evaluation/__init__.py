"""Evaluate models and baselines on fixed windows, compare their errors, and promote the better model.

From the bottom up: `metrics` computes errors, `baselines` forecasts without a model, `evaluation_set` says which
windows are evaluated, `starts` where they begin, `regions` which grid points by themselves, `scoring` scores models and
baselines on them, `compatibility` says which errors may be compared, `metric_summary` and `channel_metrics` compute the
figures of a report, `result` evaluates one model, `side_by_side` several, `selection` finds the models to evaluate,
`uncertainty` says how far an error can be trusted, `basis` what a comparison rests on, `comparison` whether two models
differ, `promotion` decides between two versions.
`mcrnn.reports` writes tables, figures and files. Does not import Ray or Optuna; `metrics` imports no MLflow either.
"""
