"""Where text comes from: one class, in one file, for each kind of source."""
