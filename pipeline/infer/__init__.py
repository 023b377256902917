"""Inference: windows over a volume, their blending, and the way back to the grid of the input.

Import from the modules; this one stays empty so that starting up needs neither torch nor monai.
"""
