"""The hyperparameter search: Optuna proposes trials, Ray Tune runs them, MLflow shows them.

`driver` runs a search from beginning to end. It opens the `study`, which with the folder of the search is all the state
there is (`search_run`), and hands it to Tune by way of `tune_adapter`. That starts new trials, whose values it draws by
`sampling` from what was learnt of others (`learning`), and lets paused trials go on that are worth it (`halving`).
Tune runs each trial in an actor (`trials`), which reports its epochs and its end (`trial_report`); `progress` shows
them and `callbacks` sends them to MLflow. When one of the `budgets` is spent, the best configurations are trained again
with other seeds (`confirmation`), and `finalize` registers the best model and writes the summary.

No step reads the whole study: `trial_index` and `trial_progress` keep in memory what the steps ask for. The study is
in a `journal`, which is taken up from a `snapshot`, or in a `database`. `superseded_files` deletes what nobody needs.
"""
