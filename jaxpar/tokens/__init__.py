"""From text to token ids: learned from, cut, encoded, and written down."""
