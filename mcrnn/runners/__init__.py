"""Where a training runs: in this process, in a Ray Tune trial, or on the workers of Ray Train.

All use of Ray except that of the search is here. Imports nothing of mcrnn.reports and mcrnn.search.
"""
