"""How independent cases are spread over workers: ``local`` over processes of this machine, which ``workers`` starts.

``places`` runs long work, such as trainings, one piece at a time at each of some places, such as GPUs.
"""

from pipeline.engine.local import Outcome, Run, default_jobs, open_engine
from pipeline.engine.places import run_at_places
from pipeline.engine.workers import warm_up

__all__ = ["Outcome", "Run", "default_jobs", "open_engine", "run_at_places", "warm_up"]
