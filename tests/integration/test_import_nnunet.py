"""Models of nnU-Net, imported and used; ``nnunet_golden_masks.py`` let nnU-Net 2.8.1 itself make the expected masks."""

import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_results import KINDS, checkpoint, image, write_results
from safetensors.torch import load_file

from pipeline.__main__ import main
from pipeline.core.errors import VolsegError
from pipeline.data.volumes import read_image
from pipeline.interop.nnunet import import_nnunet
from pipeline.model.folder import read_card
from pipeline.stages.model_card import verify_model
from pipeline.stages.predict import Predictor

EXPECTED = np.load(Path(__file__).parents[1] / "golden" / "nnunet_masks.npz")


def predicted(model, made, folder, mirror):
    settings = [f"infer.mirror={str(mirror).lower()}"]
    files = []
    for number, channel in enumerate(image(made)):
        files.append(folder / f"case_{number:04}.nii.gz")
        nib.save(channel, files[-1])
    batch = Predictor.load(model, device="cpu", settings=settings).predict_files([folder], folder / f"masks_{mirror}")
    assert not batch.failed
    (mask,) = (folder / f"masks_{mirror}").glob("*.nii.gz")
    return np.asanyarray(nib.load(mask).dataobj)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_nnunet(kind, tmp_path):
    made = KINDS[kind]
    import_nnunet(write_results(tmp_path / "results", made), tmp_path / "model")
    (tmp_path / "scans").mkdir()
    for name, mirror in (("plain", False), ("mirrored", True)):
        if mirror and made.mirror is None:  # it was trained without, and nnU-Net leaves it out
            continue
        found = predicted(tmp_path / "model", made, tmp_path / "scans", mirror)
        wrong = {bits: int((found != EXPECTED[f"{kind}_{name}_{bits}"]).sum()) for bits in (16, 32)}
        # nnU-Net adds logits in 16 bits, ours in 32. Drawn weights leave next to no margin between classes.
        assert wrong[32] <= 1, wrong
        assert wrong[16] <= 0.004 * found.size, wrong
        assert len(np.unique(found)) > 1


def test_the_command_says_what_was_taken_and_what_was_not(tmp_path, capsys):
    model = write_results(tmp_path / "results", KINDS["plain"])
    (model / "crossval_results_folds_0_1_2_3_4").mkdir()
    (model / "crossval_results_folds_0_1_2_3_4" / "postprocessing.pkl").write_bytes(b"\x80")
    out = tmp_path / "model"
    with pytest.raises(SystemExit) as left:
        main(["import-nnunet", str(model), "-o", str(out), "--fold", "1", "--license", "apache-2.0"])
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "postprocessing.pkl is a pickle and was not executed: masks are not post-processed." in said
    assert "nnunet_plain in 3D, fold 1 as 1" in said
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["README.md", "fold_1/model.safetensors", "imported.json", "manifest.json", "model.json"]
    found = verify_model(out)
    assert (found.files, found.networks) == (2, 1)
    text = " ".join((out / "README.md").read_text().split())
    for words in (
        "| liver | 1 |",
        "nnU-Net trainer: nnUNetTrainer",
        "None are known.",
        "The weights are under apache-2.0.",
    ):
        assert words in text
    card = read_card(out)
    assert (card.settings.infer.blend, card.settings.infer.mirror) == ("nnunet", True)
    assert card.provenance["nnU-Net checkpoints"] == "checkpoint_final.pth of fold 1"
    # Imported again with other folds, in place.
    import_nnunet(model, out, folds=["0"])
    assert sorted(path.name for path in out.glob("fold_*")) == ["fold_0"]


def test_weights_are_those_of_the_checkpoint_and_all_is_a_fold(tmp_path):
    made = KINDS["cascade"]
    model = write_results(tmp_path / "results", made)
    found = import_nnunet(model.parent, tmp_path / "model")  # of two models the one that predicts
    assert found.network == "nnunet_plain in 3D after a first stage"
    assert found.folds == {"all": 0}
    for home, stage in (("", "3d_cascade_fullres"), ("low_resolution", "3d_lowres")):
        weights = load_file(tmp_path / "model" / home / "fold_0" / "model.safetensors")
        given = checkpoint(made, stage, 0)["network_weights"]
        assert weights.keys() < given.keys()
        assert all(torch.equal(value, given[name]) for name, value in weights.items())


def test_an_archive_is_read_without_being_unpacked(tmp_path):
    results = tmp_path / "results"
    write_results(results, KINDS["plain"])
    archive = shutil.make_archive(str(tmp_path / "exported"), "zip", results)
    import_nnunet(results, tmp_path / "one")
    import_nnunet(archive, tmp_path / "other")
    for fold in (0, 1):
        one, other = (tmp_path / name / f"fold_{fold}" / "model.safetensors" for name in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported.zip", "one", "other", "results"]


def test_python_predicts_one_image(tmp_path):
    import_nnunet(write_results(tmp_path / "results", KINDS["thick"]), tmp_path / "model")
    (channel,) = image(KINDS["thick"])
    nib.save(channel, tmp_path / "scan.nii.gz")
    mask = Predictor.load(tmp_path / "model", device="cpu").predict(read_image(tmp_path / "scan.nii.gz"))
    assert (mask.array != EXPECTED["thick_plain_32"]).sum() <= 1


def refused(source, tmp_path, message, **options):
    with pytest.raises(VolsegError, match=message):
        import_nnunet(source, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()  # nothing was written


def test_what_does_not_fit_together_is_refused_and_nothing_written(tmp_path):
    made = KINDS["plain"]
    model = write_results(tmp_path / "results", made)
    refused(model, tmp_path, r"folds: expected fold 4 with checkpoint_final\.pth, got 0, 1\. Choose", folds=["4"])
    refused(model, tmp_path, r"folds: expected a trained fold, got none", checkpoint="best")
    refused(model, tmp_path, "checkpoint: expected final or best, got latest", checkpoint="latest")
    refused(model.parent, tmp_path, "expected one trained model of 2d, got .*3d_fullres", configuration="2d")
    second = model / "fold_1" / "checkpoint_final.pth"
    for change, message in (
        ({"trainer_name": "nnUNetTrainer_5epochs"}, "trainer, configuration and mirror axes of the other folds"),
        (
            {"network_weights": {"a": torch.zeros(1)}},
            r"weights: expected those of nnunet_plain by plans\.json, got \d+",
        ),
    ):
        torch.save(checkpoint(made, "3d_fullres", 1, **change), second)
        refused(model, tmp_path, message)
    weights = checkpoint(made, "3d_fullres", 1)["network_weights"]
    name = next(iter(weights))
    torch.save(checkpoint(made, "3d_fullres", 1, network_weights={**weights, name: weights[name][:1]}), second)
    refused(model, tmp_path, f"of another shape, such as {name}")
    torch.save(checkpoint(made, "3d_fullres", 1, network_weights={**weights, name: weights[name] / 0}), second)
    refused(model, tmp_path, "weights: expected numbers, got NaN or infinity")
    second.write_bytes(second.read_bytes()[:-1000])
    refused(model, tmp_path, r"fold_1/checkpoint_final\.pth: checkpoint: expected a whole file")


def test_a_cascade_without_its_first_stage_is_refused(tmp_path):
    model = write_results(tmp_path / "results", KINDS["cascade"])
    shutil.rmtree(model.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres"))
    refused(model, tmp_path, "first stage: expected Dataset901_made.*3d_lowres, got none|first stage: expected nnUNet")


def test_an_archive_that_leads_elsewhere_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../nnUNetTrainer__nnUNetPlans__3d_fullres/plans.json", "{}")
    refused(tmp_path / "x.zip", tmp_path, "archive: expected names of files below it, got one that leads elsewhere")


def test_other_files_in_the_way_are_kept(tmp_path):
    model = write_results(tmp_path / "results", KINDS["plain"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(VolsegError, match="output folder: expected a new folder, or a model that was imported before"):
        import_nnunet(model, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]
