"""How independent cases are spread over workers: ``local`` over processes of this machine, which ``workers`` starts."""

from pipeline.engine.local import Outcome, Run, default_jobs, open_engine
from pipeline.engine.workers import warm_up

__all__ = ["Outcome", "Run", "default_jobs", "open_engine", "warm_up"]
