"""Stages that take milliseconds, in place of the real ones: the wiring, cache and tracking around them are real."""
