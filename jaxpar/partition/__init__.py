"""Names to devices: the only room that knows a mesh."""
