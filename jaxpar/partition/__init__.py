"""Names to devices: the only package that knows a mesh."""
