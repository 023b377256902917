"""Through how many files a command runs, and the package in numbers: modules, lines, imports.

    python benchmarks/files_run_through.py            # both tables; about a minute
    python benchmarks/files_run_through.py --list     # also the names of the files
    python benchmarks/files_run_through.py --house    # only the numbers of the package

Who follows a command from its first line to its last opens these files. A file counts if one of its functions is called
(methods, lambdas, generators and comprehensions are functions too); that it is imported is not enough, so bodies of
modules and classes do not count. ``predict``, ``train`` and ``evaluate`` each run in a process of their own, on small
phantoms, with one job and on the processor. The first number is of the main thread, the second of all threads (the
loader's, those that read ahead). Imports are pairs of a module and a module of the package that it imports, at the top,
in a function or for types only; between the files run through, both ends are among these files.

Only the command line, its words and its settings are used, so the script runs on any state of the code.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import json
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pipeline

PACKAGE = Path(pipeline.__file__).parent
LONG, SHORT = 600, 60  # lines: a module above says why, one below asks whether it is one
SETTINGS = """
preprocess: {spacing_mm: [8, 8, 8]}
sample: {patch_size: [24, 24, 24], batch_size: 2}
model: {name: unet, deep_supervision: false, options: {features: [8, 16, 32], norm: batch}}
train: {optimizer: adamw, learning_rate: 3.0e-3, schedule: onecycle, budget: 15s, iterations_per_epoch: 20}
"""  # of `volseg demo`, made smaller: a budget too, as reading it is part of the way
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Module:
    """A file of the package in numbers; ``imports`` are the modules of the package that it imports."""

    lines: int
    code_lines: int
    comment_lines: int
    imports: frozenset[str]
    is_package: bool


def trace(words: list[str], out: Path) -> int:
    """Run a command in this process, write the files run through; returns the command's exit code."""
    called: dict[str, set[str]] = {"main": set(), "all": set()}
    files = {str(path): str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}  # not templates of pages
    main_thread = threading.get_ident()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Bodies of modules and classes are code objects too; only those of functions have "optimized" local names.
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename in files:
            called["all"].add(files[code.co_filename])
            if threading.get_ident() == main_thread:
                called["main"].add(files[code.co_filename])

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        from pipeline.__main__ import main

        main(words)
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    out.write_text(json.dumps({thread: sorted(names) for thread, names in called.items()}))
    return exit_code


def run(*command: str | Path) -> None:
    """Run Python with some words; the script ends with its output if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def run_through(work: Path) -> dict[str, dict[str, list[str]]]:
    """Command → files run through, by ``main`` thread and by ``all`` threads; the dataset is made in a folder."""
    data, prepared, model, masks = (work / name for name in ("data", "prepared", "model", "masks"))
    settings = work / "settings.yaml"
    settings.write_text(SETTINGS)
    run("-m", "pipeline", "phantom", data, "--cases", "6", "--tests", "1")
    run("-m", "pipeline", "preprocess", data, "-o", prepared, "-c", settings, "--jobs", "1")
    commands: dict[str, list[str | Path]] = {
        "train": [prepared, "-o", model, "-c", settings, "--device", "cpu"],
        "predict": [model, data / "imagesTs", "-o", masks, "--device", "cpu"],
        "evaluate": [masks, data / "labelsTs", "-o", work / "scores", "--jobs", "1"],
    }
    found = {}
    for name, words in commands.items():
        out = work / f"{name}.json"
        run(Path(__file__), "--trace", out, name, *words)
        found[name] = json.loads(out.read_text())
    return found


def module_name(path: Path) -> str:
    """``pipeline.core.grid`` of a file of the package; a folder is its ``__init__.py``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, module: str, is_package: bool, modules: frozenset[str]) -> Iterator[str]:
    """Modules of the package that a syntax tree imports; a name that is no module counts for the one it is taken of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) + is_package - node.level]
                home = ".".join([*parents, home] if home else parents)
            names = (f"{home}.{alias.name}" for alias in node.names)
            yield from (target for name in names if (target := name if name in modules else home) in modules)


def text_lines(tree: ast.Module) -> set[int]:
    """Lines of docstrings, those below attributes too: strings that stand alone."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def measured(path: Path, modules: frozenset[str]) -> Module:
    """A file in numbers; a line of code is neither empty, nor a comment alone, nor part of a docstring."""
    text, name, is_package = path.read_text(), module_name(path), path.name == "__init__.py"
    tree, lines = ast.parse(text), text.splitlines()
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    code = {line for token in tokens if token.type not in NOT_CODE for line in range(token.start[0], token.end[0] + 1)}
    code = {line for line in code - text_lines(tree) if lines[line - 1].strip()}
    comments = sum(token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") for token in tokens)
    return Module(len(lines), len(code), comments, frozenset(imported(tree, name, is_package, modules)), is_package)


def package() -> dict[str, Module]:
    """Name → numbers of every module of the package."""
    files = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    names = frozenset(files)
    return {name: measured(path, names) for name, path in files.items()}


def edges(modules: dict[str, Module], among: set[str]) -> int:
    """Number of imports between some modules."""
    return sum(len(modules[name].imports & among) for name in among)


def print_commands(modules: dict[str, Module], names: bool) -> None:
    """Print the table of files run through, and their names if wanted."""
    with tempfile.TemporaryDirectory() as work:
        found = run_through(Path(work))
    print("| command | files, main thread | files, all threads | imports between all |\n|---|---|---|---|")
    for command in ("predict", "train", "evaluate"):
        main_thread, every = found[command]["main"], found[command]["all"]
        among = {module_name(PACKAGE / file) for file in every}
        print(f"| {command} | {len(main_thread)} | {len(every)} | {edges(modules, among)} |")
    for command, files in found.items() if names else ():
        print(f"\n{command}, * by other threads only:")
        print("\n".join(f"    {file}{'' if file in files['main'] else ' *'}" for file in files["all"]))
    print()


def print_package(modules: dict[str, Module], names: bool) -> None:
    """Print the numbers of the package, and which modules are long or short if wanted."""
    long = [name for name, module in modules.items() if module.lines > LONG]
    short = [name for name, module in modules.items() if module.lines < SHORT and not module.is_package]
    rows = {
        "modules": len(modules),
        "lines": sum(module.lines for module in modules.values()),
        "lines of code": sum(module.code_lines for module in modules.values()),
        "lines of comment alone": sum(module.comment_lines for module in modules.values()),
        "imports between modules": edges(modules, set(modules)),
        f"modules above {LONG} lines": len(long),
        f"modules under {SHORT} lines, without __init__.py": len(short),
    }
    print("| package | |\n|---|---|")
    print("\n".join(f"| {what} | {number:,} |" for what, number in rows.items()))
    if names:
        for title, chosen in ((f"above {LONG} lines", long), (f"under {SHORT} lines", short)):
            print(f"\n{title}:")
            print("\n".join(f"    {name} {modules[name].lines}" for name in chosen) or "    none")


def main() -> None:
    """Print the tables."""
    if sys.argv[1:2] == ["--trace"]:  # the script started itself; the words after the file are those of a command
        sys.exit(trace(sys.argv[3:], Path(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of files and modules too")
    parser.add_argument("--house", action="store_true", help="only the numbers of the package, which take a second")
    chosen = parser.parse_args()
    modules = package()
    if not chosen.house:
        print_commands(modules, chosen.list)
    print_package(modules, chosen.list)


if __name__ == "__main__":
    main()
