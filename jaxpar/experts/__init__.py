"""Mixtures of experts: router, exchange of tokens, and products by groups."""
