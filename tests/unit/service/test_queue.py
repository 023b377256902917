"""Each study goes its way once, also over a restart; what is refused changes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pipeline.core.errors import VolsegError
from pipeline.service.queue import RefusedError, Study, StudyQueue

MANY = 1 << 40


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> StudyQueue:
    return StudyQueue(tmp_path / "queue.sqlite", most_open=3, clock=clock)


def come(queue: StudyQueue, uid: str, *names: str, size: int = 10) -> Study:
    """Files of a study come; the study as it is then."""
    for name in names:
        study = queue.place(uid, name, size, "dicom", MANY, 100)
        assert study is not None
        assert queue.placed(study, name, size)
    return queue.study(study.id)


def work_off(queue: StudyQueue) -> Study:
    study = queue.take("waiting", "running")
    assert study is not None
    queue.segmented(study, {"seconds": 1, "files": ["a"]}, send=True)
    queue.sent(queue.study(study.id))
    return queue.study(study.id)


def test_a_study_waits_until_nothing_of_it_came_for_some_time(queue: StudyQueue, clock: Clock) -> None:
    first = come(queue, "1.2", "a", "b")
    assert (first.state, first.files, first.bytes) == ("receiving", 2, 20)
    clock.now += 9
    assert come(queue, "1.2", "c").id == first.id
    clock.now += 9
    assert queue.settle(10) == []
    clock.now += 1
    assert [(study.id, study.state) for study in queue.settle(10)] == [(first.id, "waiting")]
    # One more of it: it waits again.
    assert come(queue, "1.2", "d").state == "receiving"
    assert queue.take("waiting", "running") is None


def test_every_step_is_taken_once(queue: StudyQueue, clock: Clock) -> None:
    come(queue, "1.2", "a")
    clock.now += 10
    queue.settle(10)
    study = queue.take("waiting", "running")
    assert study is not None
    assert queue.take("waiting", "running") is None
    queue.segmented(study, {"seconds": 2}, send=True)
    assert queue.take("waiting", "running") is None
    sending = queue.take("sending")
    assert sending is not None
    queue.sent(sending)
    assert queue.counts()["done"] == 1
    assert queue.totals()["studies_done"] == 1
    assert queue.study(study.id).about == {"seconds": 2, "delivered": True}


def test_what_came_before_is_known_and_what_comes_late_is_a_study_of_its_own(queue: StudyQueue, clock: Clock) -> None:
    first = come(queue, "1.2", "a", "b")
    clock.now += 10
    queue.settle(10)
    work_off(queue)
    assert queue.place("1.2", "a", 10, "dicom", MANY, 100) is None
    late = come(queue, "1.2", "c")
    assert late.id != first.id
    assert (late.files, late.about) == (1, {"part_of": first.id})
    assert queue.totals()["duplicate_files"] == 1
    assert (queue.knows("1.2"), queue.knows("1.3")) == (True, False)
    assert queue.fetch("1.2", {}) is None


def test_a_file_that_was_written_too_late_needs_another_place(queue: StudyQueue, clock: Clock) -> None:
    come(queue, "1.2", "a")
    study = queue.place("1.2", "b", 10, "dicom", MANY, 100)
    assert study is not None
    clock.now += 10
    queue.settle(10)
    queue.take("waiting", "running")
    assert not queue.placed(study, "b", 10)
    again = queue.place("1.2", "b", 10, "dicom", MANY, 100)
    assert again is not None
    assert again.id != study.id


def test_a_study_without_a_file_is_given_up(queue: StudyQueue, clock: Clock) -> None:
    study = queue.place("1.2", "a", 10, "dicom", MANY, 100)
    assert study is not None
    clock.now += 10
    assert queue.settle(10) == []
    assert not queue.knows("1.2")


def test_a_study_that_is_too_large_is_set_aside_as_a_whole(queue: StudyQueue) -> None:
    for limit in ({"most_bytes": 15 << 20, "most_files": 100}, {"most_bytes": MANY, "most_files": 1}):
        uid = f"1.{limit['most_files']}"
        study = queue.place(uid, "a", 10 << 20, "dicom", **limit)
        assert study is not None
        queue.placed(study, "a", 10 << 20)
        for _ in range(2):  # the rest of it is no study of its own
            with pytest.raises(RefusedError, match="a study of at most"):
                queue.place(uid, "b", 10 << 20, "dicom", **limit)
        assert queue.study(study.id).state == "failed"
        assert queue.study(study.id).reason.startswith("study: expected a study of at most")
        assert not queue.again(study.id)


def test_a_full_queue_refuses_further_studies_but_not_the_rest_of_one(queue: StudyQueue, clock: Clock) -> None:
    for uid in ("1.1", "1.2", "1.3"):
        come(queue, uid, "a")
    with pytest.raises(RefusedError, match="at most 3 studies that wait"):
        queue.place("1.4", "a", 10, "dicom", MANY, 100)
    with pytest.raises(RefusedError):
        queue.upload({})
    assert come(queue, "1.1", "b").files == 2
    clock.now += 10
    queue.settle(10)
    work_off(queue)
    come(queue, "1.4", "a")


def test_tries_are_further_and_further_apart_and_count_for_their_step(queue: StudyQueue, clock: Clock) -> None:
    come(queue, "1.2", "a")
    clock.now += 10
    queue.settle(10)
    for wait_s in (2, 4, 8, *[16, 32, 64, 128, 256, 512, 600, 600]):
        study = queue.take("waiting", "running")
        assert study is not None
        queue.retry(study, "because", becomes="waiting")
        assert queue.take("waiting", "running") is None
        clock.now += wait_s - 0.1
        assert queue.take("waiting", "running") is None
        clock.now += 0.1
    study = queue.take("waiting", "running")
    assert study is not None
    assert (study.tries, study.reason, study.step_began) == (11, "because", 1010)
    queue.segmented(study, {}, send=True)
    study = queue.study(study.id)
    assert (study.tries, study.reason, study.step_began) == (0, "", None)


def test_after_a_kill_work_is_begun_again_and_uploads_are_forgotten(tmp_path: Path, clock: Clock) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite", clock=clock)
    running, sending, receiving = (come(queue, uid, "a") for uid in ("1.1", "1.2", "1.3"))
    upload = queue.upload({"mask": "nii"})
    queue.uploaded(upload, 5)
    clock.now += 10
    queue.place("1.3", "b", 1, "dicom", MANY, 100)  # killed before it was there
    queue.settle(10)
    first = queue.take("waiting", "running")
    assert first is not None
    assert first.id == upload.id  # somebody waits for it
    assert [queue.take("waiting", "running") for _ in range(2)] == [queue.study(running.id), queue.study(sending.id)]
    queue.segmented(queue.study(sending.id), {"files": []}, send=True)
    # Not closed, as a kill would leave it.
    other = StudyQueue(tmp_path / "queue.sqlite", clock=clock)
    assert other.restart() == [upload.id]
    states = [other.study(study.id).state for study in (running, sending, receiving)]
    assert states == ["waiting", "sending", "receiving"]
    taken = other.take("waiting", "running")
    assert taken is not None
    assert taken.id == running.id
    with pytest.raises(KeyError):
        other.study(upload.id)


def test_what_failed_begins_again_where_it_failed(queue: StudyQueue, clock: Clock) -> None:
    come(queue, "1.2", "a")
    fetching = queue.fetch("1.3", {"series": {"1.3.1": 4}})
    assert fetching is not None
    clock.now += 10
    queue.settle(10)
    study = queue.take("waiting", "running")
    assert study is not None
    queue.fail(study, "no")
    queue.fail(fetching, "no")
    assert queue.totals()["studies_failed"] == 2
    assert (queue.again(study.id), queue.again(study.id), queue.again(99)) == (True, False, False)
    assert queue.again(fetching.id)
    assert [queue.study(n).state for n in (study.id, fetching.id)] == ["waiting", "fetching"]
    queue.segmented(study, {"seconds": 1}, send=True)
    queue.fail(queue.study(study.id), "archive gone")
    queue.again(study.id)
    assert queue.study(study.id).state == "sending"


def test_what_ended_long_ago_is_forgotten(queue: StudyQueue, clock: Clock) -> None:
    come(queue, "1.2", "a")
    clock.now += 10
    queue.settle(10)
    done = work_off(queue)
    clock.now += 99
    assert queue.forget(100) == []
    clock.now += 2
    assert queue.forget(100) == [done.id]
    assert not queue.knows("1.2")
    assert come(queue, "1.2", "a").id != done.id


def test_a_file_that_is_no_queue_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queue.sqlite"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(VolsegError, match="queue: expected a readable file"):
        StudyQueue(path)
    other = tmp_path / "later.sqlite"
    with sqlite3.connect(other) as base:
        base.execute("PRAGMA user_version=7")
    with pytest.raises(VolsegError, match="expected version 1, got version 7"):
        StudyQueue(other)
