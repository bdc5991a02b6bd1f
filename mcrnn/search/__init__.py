"""The hyperparameter search: study, sampling, the adapter to Ray Tune, trials, confirmation and the end of a search.

The study and the folder of a search are all of its state.
"""
