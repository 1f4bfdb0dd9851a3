"""From documents to batches: tokenizers, windows, order of rows, loader."""
