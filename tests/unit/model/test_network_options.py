import pytest

from pipeline.core.errors import ConfigError, VolsegError
from pipeline.model.network_options import Stage, StageOptions, parse_options


def problems_of(**options):
    with pytest.raises(ConfigError) as caught:
        parse_options(StageOptions, options, network="unet")
    assert caught.value.source == "options of network unet"
    return caught.value.problems


def test_numbers_are_spread_over_stages_and_axes():
    options = parse_options(StageOptions, {"features": [8, 16, 32]}, network="unet")
    assert options.stages(3) == (
        Stage(8, (3, 3, 3), (1, 1, 1)),
        Stage(16, (3, 3, 3), (2, 2, 2)),
        Stage(32, (3, 3, 3), (2, 2, 2)),
    )


def test_lists_from_a_plan_become_stages():
    options = parse_options(
        StageOptions,
        {"features": [8, 16], "kernel_sizes": [[1, 3, 3], 3], "strides": [1, [1, 2, 2]]},
        network="unet",
    )
    assert options.stages(3) == (Stage(8, (1, 3, 3), (1, 1, 1)), Stage(16, (3, 3, 3), (1, 2, 2)))


def test_options_survive_json():
    options = StageOptions(features=(8, 16), kernel_sizes=((1, 3, 3), 3), norm="group")
    assert StageOptions.model_validate(options.model_dump(mode="json")) == options


def test_wrong_name_names_the_close_one():
    (problem,) = problems_of(featurs=[8, 16])
    assert problem.startswith("featurs: expected one of features, kernel_sizes, strides, norm,")
    assert problem.endswith("got an unknown option. Did you mean features?")


def test_wrong_name_without_a_close_one():
    (problem,) = problems_of(zzz=1)
    assert problem.endswith("Choose one of them.")


def test_wrong_choice_names_the_legal_ones():
    assert problems_of(norm="bach") == (
        "norm: expected one of batch, instance, group, none, got 'bach'. Did you mean batch?",
    )


def test_all_problems_at_once():
    problems = problems_of(features=[8], norm="x", dropout=1.5, kernel_sizes="a", convs_per_stage=0)
    assert [problem.split(":")[0] for problem in problems] == [
        "features",
        "kernel_sizes",
        "norm",
        "dropout",
        "convs_per_stage",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": 2}, "kernel_sizes: expected odd numbers, got 2."),
        ({"kernel_sizes": [3, 3, 3]}, "kernel_sizes: expected one entry for each of the 2 stages in features, got 3."),
        ({"strides": [2, 2]}, "strides: expected 1 at the first stage, got 2."),
        ({"strides": [[1, 2], 2]}, "strides: expected 1 at the first stage, got (1, 2)."),
        ({"strides": 0}, "strides: expected a number of at least 1 or one entry per stage, got 0."),
        ({"strides": [1, []]}, "strides: expected a number of at least 1 or one entry per stage, got [1, []]."),
        ({"strides": [1, True]}, "strides: expected a number of at least 1 or one entry per stage, got [1, True]."),
    ],
)
def test_stage_entries_must_fit(options, message):
    (problem,) = problems_of(features=[8, 16], **options)
    assert problem.startswith(message)


def test_entries_must_have_the_axes_of_the_network():
    options = StageOptions(features=(8, 16), kernel_sizes=((3, 3), 3), strides=(1, (2, 2)))
    assert options.stages(2)[1].stride == (2, 2)
    with pytest.raises(VolsegError, match=r"kernel_sizes\.0: expected one number or 3, got \(3, 3\)") as caught:
        options.stages(3)
    assert "strides.1: expected one number or 3, got (2, 2)" in str(caught.value)
