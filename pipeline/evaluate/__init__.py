"""Evaluation: overlap, surfaces, lesions and calibration per organ, their statistics, and the files they go to.

Imports neither torch nor monai.
"""
