"""Measures of a run: FLOPs, rates, and the sinks that metrics are written to."""
