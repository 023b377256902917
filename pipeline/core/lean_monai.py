"""MONAI without what a command does not use of it: imported in a tenth of the time.

``import monai`` loads all of its modules, runs each of them twice, and tries some twenty packages that it can do
without, SciPy, pandas and matplotlib among them: 3.4 s of processor time where this takes 0.4 s. Programs of users, who
may need any of it, get MONAI as it is; only processes that run volseg's own code alone call :func:`lean_monai`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_OPTIONAL, _NOTEBOOKS = "monai.utils.module", "monai.utils.jupyter_utils"


class _Finder(MetaPathFinder):
    """Changes what MONAI imports other modules by, as soon as it is there, and keeps matplotlib from its notebooks."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in (_OPTIONAL, _NOTEBOOKS) else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_lean(module: ModuleType) -> None:
            if name == _OPTIONAL:
                execute(module)
                _change(module)
            elif "matplotlib" in sys.modules:
                execute(module)
            else:
                sys.modules["matplotlib"] = None  # type: ignore[assignment]  # so it is not to be found
                try:
                    execute(module)
                finally:
                    del sys.modules["matplotlib"]

        spec.loader.exec_module = execute_lean  # type: ignore[method-assign]
        return spec


def lean_monai() -> None:
    """Let this process import of MONAI only what it uses. Without effect where MONAI is already imported."""
    if not is_lean():
        sys.meta_path.insert(0, _Finder())


def is_lean() -> bool:
    """Whether this process imports MONAI so."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _change(module: ModuleType) -> None:
    try_import = module.optional_import

    def optional_import(module: str, *arguments: Any, **options: Any) -> Any:
        own = module.startswith(("torch", "monai")) and not module.endswith("tensorboard")
        wanted = own or module in sys.modules
        # A name that cannot be found, so that MONAI makes of it what it makes of packages that are not installed.
        return try_import(module if wanted else f"not_imported_by_volseg.{module}", *arguments, **options)

    def load_submodules(*_: object, **__: object) -> tuple[list[ModuleType], list[str]]:
        # Modules come when they are asked for. The first is the one that MONAI begins with: monai.data and
        # monai.transforms import each other, and only from there does it work.
        return [import_module("monai.apps")], []

    vars(module).update(optional_import=optional_import, load_submodules=load_submodules)
