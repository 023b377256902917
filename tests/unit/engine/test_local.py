"""The engine: cases in this process and over worker processes, and what is collected of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.core.signals import silent
from pipeline.engine import local
from pipeline.engine.local import Outcome, collect, default_jobs, map_cases, open_engine

GIB = 2**30
PATHS = os.pathsep.join((str(Path(__file__).parent), str(Path(local.__file__).parents[2])))  # of this file, of pipeline
HEARS_CTRL_C = "signal.signal(signal.SIGINT, signal.default_int_handler)"
"""For scripts that are interrupted: under nohup, and in the background of a shell script, they would ignore Ctrl-C."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")


def double(number: int) -> int:
    if number == 3:
        raise DataError("case 3: number: expected anything else, got 3. Drop it.")
    if number == 4:
        raise KeyError("what")
    return 2 * number


def die(marker: str) -> str:
    """Kill the worker, the first time only where the marker says so."""
    if marker.startswith("always"):
        os._exit(9)
    path = Path(marker)
    if path.suffix == ".once" and not path.exists():
        path.touch()
        os._exit(9)
    return marker


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_has_an_outcome_and_errors_are_sentences(jobs: int) -> None:
    with open_engine(jobs) as run:
        outcomes = sorted(run(double, [1, 2, 3, 4]), key=lambda outcome: outcome.index)
        again = sorted(outcome.value or 0 for outcome in run(double, [5, 6]))
    assert [outcome.value for outcome in outcomes] == [2, 4, None, None]
    assert outcomes[2].error == "case 3: number: expected anything else, got 3. Drop it."
    assert outcomes[3].error == "unexpected KeyError: 'what'"
    assert again == [10, 12]


def test_a_dead_worker_takes_only_its_own_case_with_it(tmp_path: Path) -> None:
    items = [str(tmp_path / "a.once"), "always", "fine"]
    with open_engine(2) as run:
        outcomes = sorted(run(die, items), key=lambda outcome: outcome.index)
        assert [outcome.value for outcome in outcomes] == [items[0], None, "fine"]
        assert "killed twice" in (outcomes[1].error or "")
        assert [outcome.value for outcome in run(die, ["after"])] == ["after"]


def work_beside_a_killer(marker: str) -> str:
    """The killer waits until the item is at work; the item goes on until the killer has died twice."""
    path = Path(marker)
    if path.name == "killer":
        while not path.with_name("item").exists():
            time.sleep(0.01)
        path.with_name(f"died.{os.getpid()}").touch()
        os._exit(9)
    path.touch()
    while not list(path.parent.glob("died.*")):
        time.sleep(0.01)
    return f"{marker} {os.getpid()}"


def test_who_works_beside_another_that_dies_is_not_disturbed(tmp_path: Path) -> None:
    items = [str(tmp_path / "item"), str(tmp_path / "killer")]
    with open_engine(2) as run:
        outcomes = {outcome.index: outcome for outcome in run(work_beside_a_killer, items)}
    assert (outcomes[0].value or "").split()[0] == items[0]
    assert "killed twice" in (outcomes[1].error or "")
    assert len(list(tmp_path.glob("died.*"))) == 2  # each time in a process of its own


def own_process(number: int) -> int:
    """Id of the process that works; a 0 kills it."""
    if number == 0:
        os._exit(9)
    return os.getpid()


def first_environment(name: str) -> str | None:
    """A variable as it was when this process began, before any import."""
    start = Path("/proc/self/environ")
    if not start.exists():
        return os.environ.get(name)
    return dict(entry.split("=", 1) for entry in start.read_text().split("\0") if entry).get(name)


@pytest.mark.parametrize("killer", [0, 17])
def test_one_killer_among_thirty_does_not_cost_the_others_a_process_each(killer: int) -> None:
    items = [int(n != killer) for n in range(30)]
    with open_engine(2) as run:
        outcomes = sorted(run(own_process, items), key=lambda outcome: outcome.index)
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert [outcome.index for outcome in outcomes if outcome.error] == [killer]
    assert "killed twice" in (outcomes[killer].error or "")
    # two workers before the death, two after it, and one or two for what was lost with them
    assert len({outcome.value for outcome in outcomes if outcome.value}) <= 6


def test_workers_begin_with_one_thread_and_the_parent_keeps_its_environment(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom test_local import THREADS, first_environment\nfrom pipeline.engine.local import open_engine\n"
        "if __name__ == '__main__':\n"
        "    before = dict(os.environ)\n"
        "    with open_engine(2) as run:\n"
        "        found = {THREADS[outcome.index]: outcome.value for outcome in run(first_environment, THREADS)}\n"
        "        assert dict(os.environ) == before\n"
        "    print([found[name] for name in THREADS])\n"
    )
    own = {name: value for name, value in os.environ.items() if name not in THREADS}
    environment = {**own, "PYTHONPATH": PATHS, "MKL_NUM_THREADS": "3"}  # the user's own choice stands
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "['1', '3', '1', 'PASSIVE']\n", done.stderr


def test_few_items_start_no_workers() -> None:
    assert default_jobs(7) == 1
    assert 1 <= default_jobs(10_000) <= (os.cpu_count() or 1)


def test_there_is_a_worker_per_processor_and_four_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "processors", lambda: 16)
    assert default_jobs(10_000) == 16
    assert default_jobs(24) == 6


def crowds(marker: str) -> list[list[str]]:
    """Names of the items at work, this one included, at 25 moments of half a second."""
    path = Path(marker)
    path.touch()
    found = []
    for _ in range(25):
        found.append(sorted(other.name for other in path.parent.iterdir()))
        time.sleep(0.02)
    path.unlink()
    return found


def size_of(marker: str) -> int:
    return int(Path(marker).name.split("_")[1])


def test_no_more_run_at_once_than_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_bytes", lambda: 10 + 3)
    names = ["a_4", "b_5", "c_99", "d_6", "e_5", "f_3", "g_1"]  # 99 is more than there is
    with open_engine(3, worker_bytes=1) as run:  # three workers take 3 of the 13 bytes
        outcomes = {n.index: n.value or [] for n in run(crowds, [str(tmp_path / name) for name in names], size_of)}
    assert sorted(outcomes) == list(range(7))
    assert all(crowd == ["c_99"] for crowd in outcomes[2])
    others = [crowd for index, found in outcomes.items() if index != 2 for crowd in found]
    assert all(len(crowd) <= 3 and sum(map(size_of, crowd)) <= 10 for crowd in others)
    assert max(map(len, others)) >= 2  # small ones do run side by side


def test_sizes_are_asked_for_when_their_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_bytes", lambda: 10)
    asked: list[int] = []

    def size(number: int) -> int:
        asked.append(number)
        if number % 2:
            raise DataError("no header")
        return 1

    with open_engine(2) as run:
        outcomes = run(double, range(100, 200), size)
        next(outcomes)
        assert len(asked) == 4  # two at work, one queued, one that waits to be
        assert len(list(outcomes)) == 99
    assert asked == list(range(100, 200))


def test_workers_get_at_most_half_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_bytes", lambda: 6 * GIB)
    with open_engine(16, worker_bytes=4 * GIB) as run:  # not even one: in this process
        assert [outcome.value for outcome in run(own_process, [1, 2])] == [os.getpid()] * 2
    with open_engine(16, worker_bytes=1 * GIB) as run:
        workers = {outcome.value for outcome in run(slow_process, range(12))}
    assert 1 <= len(workers) <= 3
    assert os.getpid() not in workers


def slow_process(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def start_and_wait(marker: str) -> None:
    Path(marker).write_text(str(os.getpid()))
    time.sleep(3600)


def test_workers_of_a_killed_process_end(tmp_path: Path) -> None:
    marker = tmp_path / "worker"
    code = (
        "from test_local import start_and_wait\nfrom pipeline.engine.local import open_engine\n"
        "if __name__ == '__main__':\n"
        f"    with open_engine(2) as run:\n        list(run(start_and_wait, [{str(marker)!r}]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": PATHS})
    try:
        assert within(60, lambda: marker.exists() and marker.read_text() != "")
        worker = int(marker.read_text())
        assert alive(worker)
    finally:
        parent.kill()
        parent.wait()
    assert within(30, lambda: not alive(worker))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")
def test_light_workers_yield_to_the_imports_of_the_server_and_others_can_plot(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import os\ndef niceness(_):\n    return os.nice(0)\ndef plots(_):\n    import matplotlib\n"
        "    return matplotlib.__name__\ndef loaded(_):\n    import sys\n    return 'torch' in sys.modules\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from pipeline.engine.local import open_engine\n"
        "from pipeline.engine.workers import warm_up\nfrom work import loaded, niceness, plots\n"
        "def first(function, **how):\n    with open_engine(2, **how) as run:\n"
        "        return next(iter(run(function, [0, 0]))).value\n"
        "if __name__ == '__main__':\n    before = first(niceness, light=True)\n"
        "    warm_up(2, 'pipeline.preprocess.prepare_case')\n"
        "    print(first(niceness, light=True) - before, first(niceness) - before, first(plots), first(loaded))\n"
    )
    environment = {**os.environ, "PYTHONPATH": PATHS + os.pathsep + str(tmp_path)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("5 0 matplotlib True\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")
@pytest.mark.parametrize("delay_s", [0.2, 0.7, 1.5])
def test_ctrl_c_while_libraries_are_imported_says_nothing_more(tmp_path: Path, delay_s: float) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, time\nfrom pipeline.engine.workers import warm_up\nif __name__ == '__main__':\n"
        f"    {HEARS_CTRL_C}\n    try:\n        warm_up(2, 'pipeline.preprocess.prepare_case')\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n    except KeyboardInterrupt:\n        pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": PATHS}
    process = subprocess.Popen(
        [sys.executable, script],
        env=environment,
        text=True,
        start_new_session=True,
        stdout=-1,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("", 0)


def within(seconds: float, happened: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return happened()


def alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    stat = Path(f"/proc/{process}/stat")
    if Path("/proc/self").exists():
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


ORDER = (2, 0, 1, 4, 3)


class Engine:
    """Gives outcomes in an order of its own; notes how far it was asked and for which sizes."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.sizes: list[int] = []

    def __call__(
        self, function: Callable[[Any], Any], items: Sequence[Any], bytes_of: Callable[[Any], int] | None = None
    ) -> Iterator[Outcome[Any]]:
        for index in ORDER:
            self.begun.append(index)
            self.sizes += [bytes_of(items[index])] if bytes_of else []
            error = "worker process: expected to finish." if items[index] == "bad" else None
            yield Outcome(index, None if error else function(items[index]), error)


def test_mapped_keeps_the_order_and_waits_no_longer_than_it_must() -> None:
    engine, told = Engine(), []
    results = map_cases(engine, lambda done, total, what: told.append((done, total, what)), "check", len)(
        str.upper, ["a", "b", "c", "d", "e"]
    )
    assert next(results) == "A"
    assert engine.begun == [2, 0]
    assert list(results) == ["B", "C", "D", "E"]
    assert told == [(n, 5, "check") for n in range(1, 6)]
    assert engine.sizes == [1] * 5


def test_mapped_leaves_failed_items_out_or_makes_results_of_them() -> None:
    items = ["a", "bad", "c", "d", "e"]
    assert list(map_cases(Engine(), silent, "")(str.upper, items)) == ["A", "C", "D", "E"]
    found = list(map_cases(Engine(), silent, "", None, lambda item, error: f"{item}: {error}")(str.upper, items))
    assert found == ["A", "bad: worker process: expected to finish.", "C", "D", "E"]


def test_collect_names_what_failed() -> None:
    done, failed = collect(Engine(), str.upper, dict(zip("vwxyz", ["a", "b", "bad", "d", "e"], strict=True)))
    assert done == {"v": "A", "w": "B", "y": "D", "z": "E"}
    assert failed == [("x", "worker process: expected to finish.")]
