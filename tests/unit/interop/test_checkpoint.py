import io
import os
import pickle
import zipfile

import pytest
import torch
from nnunet_results import KINDS, checkpoint

from pipeline.core.errors import VolsegError
from pipeline.interop.checkpoint import read_checkpoint


def saved(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_weights_and_words_of_a_checkpoint():
    content = checkpoint(KINDS["plain"], "3d_fullres", 0)
    found = read_checkpoint(saved(content), "checkpoint_final.pth")
    assert (found.trainer, found.configuration, found.mirror_axes) == ("nnUNetTrainer", "3d_fullres", (0, 1, 2))
    assert found.weights.keys() == content["network_weights"].keys()
    assert all(torch.equal(value, content["network_weights"][name]) for name, value in found.weights.items())


def test_no_mirror_axes_is_no_mirroring():
    content = checkpoint(KINDS["plain"], "3d_fullres", 0)
    del content["inference_allowed_mirroring_axes"]
    assert read_checkpoint(saved(content), "x").mirror_axes == ()


def test_a_hostile_pickle_is_refused_by_name_and_not_executed(tmp_path):
    mark = tmp_path / "executed"
    content = {**checkpoint(KINDS["plain"], "3d_fullres", 0), "logging": Hostile(mark)}
    with pytest.raises(
        VolsegError, match=r"expected tensors, numbers and texts, got '?(posix|nt)\.mkdir'?, which could"
    ):
        read_checkpoint(saved(content), "x")
    assert not mark.exists()


def test_functions_of_numpy_are_refused_too():
    content = {**checkpoint(KINDS["plain"], "3d_fullres", 0), "logging": {"array": __import__("numpy").zeros(2)}}
    with pytest.raises(VolsegError, match=r"got '?numpy\._?core\.multiarray\._reconstruct'?, which could run anything"):
        read_checkpoint(saved(content), "x")


def test_a_bare_pickle_is_refused(tmp_path):
    with pytest.raises(VolsegError, match=r"x: checkpoint: expected a whole file of torch\.save, got another"):
        read_checkpoint(pickle.dumps(Hostile(tmp_path / "executed")), "x")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(share):
    whole = saved(checkpoint(KINDS["plain"], "3d_fullres", 0))
    with pytest.raises(VolsegError, match=r"checkpoint: expected a whole file of torch\.save, got another or a trunc"):
        read_checkpoint(whole[: int(share * len(whole))], "x")


def test_packed_records_are_refused():
    whole, packed = io.BytesIO(saved({"network_weights": {"a": torch.zeros(10_000)}})), io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(VolsegError, match=r"expected records as torch\.save writes them, got a compressed one"):
        read_checkpoint(packed.getvalue(), "x")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network_weights": {"a": 1.0}}, "network_weights"),
        ({"trainer_name": None, "init_args": {}}, "trainer_name, init_args.configuration"),
        ({"inference_allowed_mirroring_axes": (3,)}, "inference_allowed_mirroring_axes"),
        ({"inference_allowed_mirroring_axes": 1}, "inference_allowed_mirroring_axes"),
    ],
)
def test_what_lacks_something_is_refused(changes, named):
    content = {**checkpoint(KINDS["plain"], "3d_fullres", 0), **changes}
    with pytest.raises(VolsegError, match=f"expected one of nnU-Net v2, got no usable {named}"):
        read_checkpoint(saved(content), "x")


def test_other_content_is_refused():
    with pytest.raises(VolsegError, match="got no usable network_weights, trainer_name"):
        read_checkpoint(saved([torch.zeros(2)]), "x")
