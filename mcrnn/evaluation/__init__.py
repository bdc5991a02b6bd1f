"""Evaluating models and baselines on fixed windows: evaluation set, metrics, scoring, comparison and promotion.

Computes and compares; what a person reads of it is written by `mcrnn.reports`.
"""
