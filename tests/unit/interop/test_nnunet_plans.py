import pytest
from nnunet_results import KINDS, dataset, plans

from pipeline.core.errors import VolsegError
from pipeline.core.grid import Grid
from pipeline.interop.nnunet_plans import TRAINERS, ModelPlans
from pipeline.preprocess.plan_file import Normalization, Plan


def made(kind, change=lambda plans, dataset: None):
    content, described = plans(KINDS[kind]), dataset(KINDS[kind])
    change(content, described)
    return ModelPlans(content, described, "plans.json")


def grid(spacing=(1.0, 2.0, 3.0), shape=(10, 20, 30)):
    return Grid.from_spacing(shape, spacing)


def test_axes_are_those_of_the_file_in_nnunets_order():
    plan = made("plain").plan("3d_fullres", (0, 2))
    # z, y, x of the file, of which nnU-Net takes the third first.
    assert plan.conventions.file_axes == (0, 2, 1)
    assert plan.orientation == "RSA"
    assert plan.orientation_of(grid()) == "RSA"
    assert plan.orientation_of(grid().reoriented("PIL")) == "PLI"
    assert plan.spacing_mm == (1.1, 0.9, 1.0)
    assert plan.conventions.mirror_axes == (0, 2)
    assert plan.slice_axis == 0
    assert plan.median_shape == (24, 24, 24)


def test_readers_that_turn_volumes_do_so_here():
    plan = made("plain", lambda p, d: p.update(image_reader_writer="NibabelIOWithReorient")).plan("3d_fullres", ())
    assert plan.conventions.file_axes is None
    assert plan.orientation_of(grid().reoriented("PIL")) == "RSA"


def test_2d_networks_leave_slices_where_they_are():
    model = made("flat")
    plan = model.plan("2d", (0, 1))
    turned = grid().reoriented("ASR")
    assert plan.spacing_mm == (1.5, 0.9, 1.1)
    assert plan.resampling_of(turned)[0] == (2.0, 0.9, 1.1)
    assert plan.conventions.mirror_axes == (1, 2)
    assert (plan.patch_2d.patch_size, plan.patch_3d.patch_size) == ((16, 16), (1, 16, 16))
    assert model.network("2d", plan, "nnUNetTrainer").dims == 2


def test_a_coarse_axis_is_resampled_apart_by_the_planned_spacing():
    plan = made("thick").plan("3d_fullres", ())
    thick = grid((4.5, 1.0, 1.0))
    assert plan.resampling_of(thick) == ((3.6, 1.0, 1.1), 0)
    assert plan.logit_orders(thick) == (0, 1, 1)
    assert plan.logit_orders(grid((1.0, 1.0, 1.0))) == (0, 1, 1)  # coarse before
    assert made("plain").plan("3d_fullres", ()).logit_orders(grid((1.0, 1.0, 1.0))) == (1, 1, 1)

    def together(content, described):
        stage = content["configurations"]["3d_fullres"]
        for kind in ("data", "probabilities"):
            stage[f"resampling_fn_{kind}_kwargs"]["force_separate_z"] = False

    assert made("thick", together).plan("3d_fullres", ()).logit_orders(thick) == (1, 1, 1)


def test_normalization_of_every_kind():
    ct = Normalization(scheme="ct", mean=40.0, sd=60.0, low=-80.0, high=190.0)
    assert made("thick").plan("3d_fullres", ()).normalization == (ct,)
    found = made("regions").plan("3d_fullres", ()).normalization
    assert [entry.scheme for entry in found] == ["zscore_nonzero", "range"]

    def change(content, described):
        content["configurations"]["3d_fullres"]["normalization_schemes"] = ["RGBTo01Normalization", "NoNormalization"]

    rgb, none = made("regions", change).plan("3d_fullres", ()).normalization
    assert (rgb.scheme, rgb.mean, rgb.sd, rgb.low) == ("ct", 0.0, 255.0, None)
    assert none.scheme == "none"


def test_regions_and_the_ignore_label():
    plan = made("regions").plan("3d_fullres", ())
    table = plan.label_table
    assert dict(table.regions) == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert table.painted == (1, 2, 3)
    assert table.ignore_label == 4
    assert plan.painting() == (((0,), 1), ((1,), 2), ((2,), 3))


def test_crossings_of_regions_are_painted_as_nnunet_does():
    def change(content, described):
        described["labels"] = {"background": 0, "a": [1, 3], "b": [2, 3]}
        described["regions_class_order"] = [1, 2]

    plan = made("regions", change).plan("3d_fullres", ())
    assert plan.label_table.painting() == (((0,), 1), ((1,), 2), ((0, 1), 3))
    assert plan.painting() == (((0,), 1), ((1,), 2))


def test_a_cascade_has_the_grid_of_its_first_stage():
    model = made("cascade")
    plan = model.plan("3d_cascade_fullres", (0, 1, 2))
    assert plan.cascade
    assert plan.low_resolution.spacing_mm == (1.9, 2.1, 2.0)
    spec = model.network("3d_cascade_fullres", plan, "nnUNetTrainer")
    assert (spec.in_channels, spec.stage_classes, spec.out_channels) == (3, 2, 3)
    assert not model.plan("3d_lowres", ()).cascade


def test_older_plans_are_the_same_network():
    def older(content, described):
        stage = content["configurations"]["3d_fullres"]
        del stage["architecture"]
        stage |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": [1, 1, 2],
            "n_conv_per_stage_decoder": [1, 1],
            "num_pool_per_axis": [2, 2, 2],
            "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "conv_kernel_sizes": [[3, 3, 3]] * 3,
        }
        known = content.pop("foreground_intensity_properties_per_channel")
        content["foreground_intensity_properties_by_modality"] = known
        del described["channel_names"]
        described["modality"] = {"0": "MR"}

    def newer(content, described):
        stage = content["configurations"]["3d_fullres"]
        stage["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8]

    old, new = made("plain", older), made("plain", newer)
    plan = old.plan("3d_fullres", ())
    assert plan == new.plan("3d_fullres", ())
    assert old.network("3d_fullres", plan, "nnUNetTrainer") == new.network("3d_fullres", plan, "nnUNetTrainer")


def test_configurations_inherit():
    def change(content, described):
        content["configurations"]["3d_fullres_bs4"] = {"inherits_from": "3d_fullres", "batch_size": 4}

    plan = made("plain", change).plan("3d_fullres_bs4", ())
    assert (plan.patch_3d.patch_size, plan.patch_3d.batch_size) == ((16, 16, 16), 4)


@pytest.mark.parametrize("name", [*sorted(TRAINERS), "nnUNetTrainer_4000epochs_NoMirroring", "nnUNetTrainer_1epoch"])
def test_trainers_that_change_the_training_alone(name):
    model = made("plain")
    spec = model.network("3d_fullres", model.plan("3d_fullres", ()), name)
    assert spec.options["norm"] == ("batch" if name == "nnUNetTrainerBN" else "instance")


@pytest.mark.parametrize("name", ["nnUNet_Primus_M_Trainer", "nnUNetTrainerMedNeXt", "nnUNetTrainer_5epochs2", "Mine"])
def test_other_trainers_are_refused_by_name(name):
    model = made("plain")
    with pytest.raises(VolsegError, match=f"trainer: expected one that changes the training alone, got '{name}'"):
        model.network("3d_fullres", model.plan("3d_fullres", ()), name)


def stage(**changes):
    return lambda content, described: content["configurations"]["3d_fullres"].update(changes)


def option(**changes):
    return lambda content, described: content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(
        changes
    )


def network_class(name):
    return lambda content, described: content["configurations"]["3d_fullres"]["architecture"].update(
        network_class_name=name
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (network_class("dynamic_network_architectures.architectures.primus.Primus"), "network_class_name: .*Primus"),
        (network_class("mine.PlainConvUNet"), "network_class_name: expected one of PlainConvUNet, Resid.*mine.Plain"),
        (option(dropout_op="torch.nn.Dropout3d"), "arch_kwargs.dropout_op: expected one of null, got"),
        (option(squeeze_excitation=True), "arch_kwargs.squeeze_excitation: expected no such option, got True"),
        (option(nonlin_kwargs={"negative_slope": 0.1}), "arch_kwargs.nonlin_kwargs: expected"),
        (option(norm_op_kwargs={"eps": 1e-3, "affine": True}), "arch_kwargs.norm_op_kwargs: expected"),
        (option(strides=[[1, 1, 1]]), "architecture: .*strides"),
        (stage(patch_size=[15, 16, 16]), r"patch_size: expected a size the network takes, such as \(16, 16, 16\)"),
        (stage(patch_size=[16, 16]), "spacing and patch_size: expected as many axes"),
        (stage(preprocessor_name="Mine"), "preprocessor_name: expected DefaultPreprocessor, got 'Mine'"),
        (stage(resampling_fn_data="resample_torch_fornnunet"), "resampling_fn_data: expected resample_data_or_seg"),
        (
            stage(resampling_fn_probabilities_kwargs={"order": 3}),
            "resampling_fn_probabilities_kwargs: expected order 1",
        ),
        (
            stage(resampling_fn_data_kwargs={"order": 3, "force_separate_z": True}),
            "resampling_fn_data_kwargs: expected",
        ),
        (stage(normalization_schemes=["Mine"]), "normalization_schemes: expected one of CTNormalization, .*got 'Mine'"),
        (stage(use_mask_for_norm=[]), "normalization: expected an entry for each channel"),
        (stage(spacing=None), "3d_fullres: spacing: expected"),
        (stage(inherits_from="3d_fullres"), "configuration: expected one of 3d_fullres, not its own heir"),
        (lambda p, d: p.pop("transpose_forward"), "plans.json: transpose_forward: .*Plans of nnU-Net 2.0 to 2.8"),
        (lambda p, d: p.update(transpose_forward=[0, 0, 1]), "transpose_forward: expected 0, 1 and 2 in some order"),
        (lambda p, d: p.update(image_reader_writer="MyIO"), "image_reader_writer: expected SimpleITKIO, .*got 'MyIO'"),
        (lambda p, d: p.update(label_manager="Mine"), "label_manager: expected LabelManager, got 'Mine'"),
        (lambda p, d: d["labels"].update(spleen=3), "labels: expected values 1, 2, … without gaps"),
        (lambda p, d: d.pop("channel_names"), "channel_names: expected names by number, got None"),
        (lambda p, d: d["labels"].update(both=[1, 2]), "regions_class_order: expected a value for each region"),
    ],
)
def test_what_is_not_known_is_refused_by_name(change, message):
    def network():
        model = made("plain", change)
        return model.network("3d_fullres", model.plan("3d_fullres", ()), "nnUNetTrainer")

    with pytest.raises(VolsegError, match=message):
        network()


def test_mirror_axes_that_the_network_has_not_are_refused():
    with pytest.raises(VolsegError, match="inference_allowed_mirroring_axes: expected axes of 2 dimensions, got 2"):
        made("flat").plan("2d", (2,))


def test_a_plan_is_the_same_after_it_was_written():
    plan = made("thick").plan("3d_fullres", (0,))
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
