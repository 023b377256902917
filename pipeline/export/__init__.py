"""Ways out of the pipeline: the HTML report and its pictures. Imports neither torch nor monai."""

from pipeline.export.overlay import Overlay, case_overlay
from pipeline.export.report import write_report

__all__ = ["Overlay", "case_overlay", "write_report"]
