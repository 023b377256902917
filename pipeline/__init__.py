"""volseg: 3D volumetric medical segmentation.

The public API stands in ``__init__.pyi``. Each name is imported when it is first used: ``import pipeline`` costs
nothing.

Example:
    >>> from pipeline import Grid, build_network
    >>> Grid.from_spacing((64, 64, 32), (1.0, 1.0, 3.0)).spacing_mm
    (1.0, 1.0, 3.0)
    >>> build_network("unet", 3, in_channels=1, out_channels=2, features=(8, 16), seed=0).legal_size((30, 31, 32))
    (30, 32, 32)
"""

import sys
from types import ModuleType

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name from its home on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}; the public names are {', '.join(__all__)}")
    return _load(name)


class _Package(ModuleType):
    """Keeps the public steps ``preprocess``, ``train``, ``evaluate`` and ``report``, which are packages here, too.

    Inner modules of these four are reached by ``from pipeline.train.loss import …``, not as attributes of ``pipeline``.
    """

    def __setattr__(self, name: str, value: object) -> None:
        # Python makes a package an attribute of its parent when it is imported. `from pipeline import train` would then
        # give the step or the package, depending on what was imported before.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
