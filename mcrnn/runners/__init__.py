"""Where a training runs: this process, a Ray Tune trial, or the workers of Ray Train.

All of Ray but the search is here.
"""
