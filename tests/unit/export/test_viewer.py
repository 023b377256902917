import gzip
import hashlib

from pipeline.export.viewer import Room, asset, chosen_cases


def test_half_of_the_cases_are_the_worst_and_half_the_best():
    assert chosen_cases("abcdefg", 3) == [("a", "worst"), ("b", "worst"), ("g", "best")]
    assert chosen_cases("abc", 9) == chosen_cases("abc", 3) == [("a", "worst"), ("b", "worst"), ("c", "best")]
    assert chosen_cases("abc", 0) == chosen_cases("", 5) == []


def test_what_a_small_case_leaves_goes_to_the_others():
    room = Room(90, 3)
    assert room.share() == 30
    room.take(10)
    assert room.share() == 40
    room.take(0)
    assert room.share() == 80


def test_the_library_is_the_one_that_its_makers_published():
    """The hash of dist/niivue.umd.js in the npm package @niivue/niivue 0.69.0; its licence lies beside it."""
    library = gzip.decompress(asset("niivue.umd.js.gz"))
    assert hashlib.sha256(library).hexdigest() == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert b"Copyright (c) 2021, Niivue" in asset("niivue.LICENSE.txt")
