"""Settings: one YAML file is one frozen, validated object.

Each step of the pipeline reads its own section. Unknown keys are refused with the nearest known one, and all problems
are reported at once with their YAML paths.
"""
