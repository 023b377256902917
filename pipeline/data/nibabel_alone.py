"""nibabel, imported without pydicom, which it takes along wherever that is installed.

pydicom takes half a second to import, which no command on NIfTI files needs; and it would parse the DICOM headers that
some programs put into NIfTI files, in this process. Whoever needs nibabel takes it from here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_pydicom() -> Iterator[None]:
    """Within the block an import of pydicom fails, which the libraries that would like to have it are ready for."""
    before = {"pydicom": sys.modules["pydicom"]} if "pydicom" in sys.modules else {}
    sys.modules["pydicom"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["pydicom"]
        sys.modules.update(before)


with without_pydicom():
    import nibabel

nib: Any = nibabel
