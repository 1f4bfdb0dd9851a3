"""One class, in one file, for each kind of source."""
