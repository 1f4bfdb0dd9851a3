"""Guards against damage, hanging and losing work."""
