"""Learning curves of random configurations, recorded once, on which searchers are replayed and compared.

`record` trains the configurations and writes a table. `blackbox` answers with the curve of any configuration of the
space, `simulation` runs a search on it with a simulated clock, through the classes that a live search uses, `peers`
are the searches that it is compared with, and `replay` prints the comparison.
"""
