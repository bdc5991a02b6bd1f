"""The training step on a GPU: times, equality, memory and layouts."""
