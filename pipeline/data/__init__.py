"""Files ⇔ values: volumes, dataset layouts, checks, repairs and the store of prepared cases.

``volumes`` reads and writes volume files, ``layouts`` opens dataset folders, ``layout_targets``, ``convert_case`` and
``layout_writers`` write them in another layout, ``check`` lists their problems, ``repair`` writes a case without them,
``reader`` is MONAI's way in (the only module here that imports MONAI), ``store`` keeps prepared cases. Format libraries
are imported by the modules that need them, not here, so that start-up stays quick.
"""
