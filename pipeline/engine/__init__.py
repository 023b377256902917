"""How independent cases are spread over workers: ``local`` over processes of this machine, which ``workers`` starts.

``places`` runs long work, such as trainings, one piece at a time at each of some places, such as GPUs.
"""
