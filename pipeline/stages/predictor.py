"""The predictor of the public API: one that also takes files, folders, patterns and lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.infer import predictor
from pipeline.stages.batch import Batch, Progress, quiet
from pipeline.stages.predict import predict_files
from pipeline.stages.prediction_output import Output

__all__ = ["Predictor"]


class Predictor(predictor.Predictor):
    """A trained model, or an ensemble of several, ready to segment images and files.

    It may be used by several threads at the same time.

    Example:
        >>> predictor = Predictor.load("model")                       # doctest: +SKIP
        >>> label_map = predictor.predict(read_image("scan.nii.gz"))  # doctest: +SKIP
        >>> batch = predictor.predict_files(["scans"], "masks")       # doctest: +SKIP
    """

    def predict_files(
        self,
        inputs: Sequence[Path | str],
        out: Path | str,
        *,
        output: Output | None = None,
        progress: Progress = quiet,
    ) -> Batch:
        """Segment files, folders, patterns and lists, as ``volseg predict`` does, with the model that is loaded.

        Args:
            inputs: As for :func:`~pipeline.stages.predict.predict_files`, and so is all else.
            out: Folder for the masks; no two calls may write to one at the same time.
            output: What to write; by default a mask per case in its image's format.
            progress: Told after every case that was computed.

        Returns:
            Which cases were done, kept and failed; a case that fails ends no other.

        Raises:
            VolsegError: As there.
        """
        return predict_files(self, inputs, out, output=output, progress=progress)
