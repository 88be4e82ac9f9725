"""A decoder's pass over up to 64 rows, draft trees or decode, in five launches a layer.

A launch is a linear layer with all that comes before and after it, or attention. Small models have launches compiled
for their sizes (small.py), wide layers stream their weights (wide.py), others take linear.cuh. Each reads its first
weights before the launch before it has ended (programmatic dependent launch), so that the memory does not wait between
them.
"""
