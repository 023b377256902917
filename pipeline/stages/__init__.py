"""The steps of the pipeline, one module each, in the order the data flows.

``prepare`` (check, plan, preprocess) → ``train`` → ``predict`` → ``evaluate`` → ``report``; ``demo`` runs them all.
``repair`` writes a copy of a dataset that has problems.
Each step reads and writes plain files, so any of them can be run, replaced or resumed alone. Nothing is imported here,
so that evaluation starts without torch and monai.
"""
