"""Measures of a run: operations, rates, and where they are written."""
