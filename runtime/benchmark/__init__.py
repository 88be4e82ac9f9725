"""Measures engines: workloads, a timed runner, samples and their summary. Draws nothing and judges nothing."""
