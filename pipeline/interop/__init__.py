"""Models of other tools."""
