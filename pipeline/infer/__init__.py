"""Inference: windows over a volume, their blending, and the way back to the grid of the input."""
