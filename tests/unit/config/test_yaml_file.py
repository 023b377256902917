from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.settings import Settings
from pipeline.config.yaml_file import load_settings, save_settings
from pipeline.core.errors import ConfigError


def problems(path: Path | None = None, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, overrides)
    return caught.value.problems


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    assert load_settings() == Settings()
    assert load_settings(written(tmp_path, "# nothing yet\n")) == Settings()


def test_a_section_without_keys_is_the_default_section(tmp_path: Path) -> None:
    path = written(tmp_path, "train:\n  # epochs: 5\nmodel:\n  dims: 2\n")
    assert load_settings(path) == load_settings(overrides=["model.dims=2"])
    assert load_settings(path, ["train.epochs=7"]).train.epochs == 7


def test_saving_writes_every_key_in_the_order_of_the_sections(tmp_path: Path) -> None:
    text = save_settings(Settings(), tmp_path / "all.yaml")
    assert (tmp_path / "all.yaml").read_text(encoding="utf-8") == text
    top = [line.partition(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert top == ["preprocess", "sample", "augment", "model", "loss", "train", "infer"]
    assert "  learning_rate: 0.01\n" in text
    assert "  gamma: [0.7, 1.5]\n" in text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=3e-4", 0.0003),
        ("train.learning_rate=3E-4", 0.0003),
        ("train.learning_rate=.5", 0.5),
        ("train.learning_rate=1", 1.0),
        ("train.gradient_clip=null", None),
        ("train.budget=10m", "10m"),
        ("train.budget=600", "600s"),
        ("loss.batch_dice=true", True),
        ("sample.patch_size=[96, 96, 64]", (96, 96, 64)),
        ("augment.scale=[7e-1, 1.4]", (0.7, 1.4)),
        ("augment.flip_axes=[]", ()),
        ("model.options={features: [16, 32], norm: batch}", {"features": [16, 32], "norm": "batch"}),
        ("model.options.norm=batch", {"norm": "batch"}),
        (" model.name = unetpp", "unetpp"),
        ("model.name=a=b", "a=b"),
        ("model.name='5'", "5"),
    ],
)
def test_overrides_by_hand(override: str, value: object) -> None:
    settings = load_settings(overrides=[override])
    section, key = override.partition("=")[0].strip().split(".")[:2]
    assert getattr(getattr(settings, section), key) == value


def test_overrides_win_over_the_file_and_the_last_over_the_first(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {epochs: 5, seed: 1}\n")
    train = load_settings(path, ["train.epochs=6", "train.epochs=7"]).train
    assert (train.epochs, train.seed) == (7, 1)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.epochs", "--set train.epochs: expected section.key=value, got 'train.epochs'."),
        ("=3", "--set =3: expected section.key=value, got '=3'."),
        ("train.=3", "--set train.=3: expected section.key=value, got 'train.=3'."),
        ("train.epochs=[1", "--set train.epochs=[1: expected a YAML value after =, got '[1'. Quote it."),
        ("model.dims.x.y=3", None),
        ("epochs=3", "epochs: unknown key. Did you mean train.epochs?"),
        ("train.batch_size=3", "train.batch_size: unknown key. Did you mean sample.batch_size or infer.batch_size?"),
        ("xyz=3", "xyz: unknown key. Known keys: preprocess, sample, augment, model, loss, train, infer."),
        ("train.epocs=3", "train.epocs: unknown key. Did you mean epochs?"),
        ("train.epochs=0", "train.epochs: expected at least 1, got 0. Correct the value."),
        ("infer.window_size=fits", "infer.window_size: expected 'fit', got 'fits'. Did you mean fit?"),
        ("infer.window_size=[0,8]", "infer.window_size.0: expected at least 1, got 0. Correct the value."),
        ("infer.window_size=[8,x]", "infer.window_size.1: expected a valid integer, got 'x'. Correct the value."),
        ("infer.window_size=7", "infer.window_size: expected a valid tuple, got 7. Correct the value."),
        ("augment.rotate_degrees=aut", "augment.rotate_degrees: expected 'auto', got 'aut'. Did you mean auto?"),
        ("augment.rotate_degrees=400", "augment.rotate_degrees: expected at most 180, got 400. Correct the value."),
        ("loss.batch_dice=maybe", "loss.batch_dice: expected 'auto', got 'maybe'. Correct the value."),
        ("loss.batch_dice=7", "loss.batch_dice: expected a valid boolean, got 7. Correct the value."),
        ("loss.class_weights=foo", "loss.class_weights: expected 'none', 'balanced' or 'plan', got 'foo'."),
        ("train.learning_rate=nan", "train.learning_rate: expected"),
        ("train.learning_rate=inf", "train.learning_rate: expected a finite number, got inf. Correct the value."),
    ],
)
def test_wrong_overrides_are_refused(override: str, problem: str | None) -> None:
    (found,) = problems(overrides=(override,))
    assert found.startswith(problem or "model.dims: expected")


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "model: {dims: 3}\n")
    assert problems(path, ("model.dims.x=3",)) == (
        "--set model.dims.x=3: expected a section before x, got a value. Check the key.",
    )
    assert problems(path, ("model.dims.x.y=3",)) == (
        "--set model.dims.x.y=3: expected a section at x, got a value. Check the key.",
    )


def test_all_problems_are_reported_at_once_with_their_paths(tmp_path: Path) -> None:
    text = """
train:
  learning_rate: -1
  epoch: 3
  epochs: 2.5
  momentum: high
preprocess:
  normalization: zscor
  spacing_mm: [1, 2]
  patch_size: [1, 2, x]
  patch_size_2d: [1, 2, 3]
augment:
  scale: [2, 1]
  flip_axes: [LR, XX]
sampel: {}
model: 5
1: 2
"""
    path = written(tmp_path, text)
    found = problems(path, ("infer.overlap=1", "train.budget"))
    assert sorted(found) == sorted(
        [
            "--set train.budget: expected section.key=value, got 'train.budget'. For example train.learning_rate=3e-4.",
            "train.learning_rate: expected more than 0, got -1. Correct the value.",
            "train.epoch: unknown key. Did you mean epochs?",
            "train.epochs: expected a valid integer, got 2.5. Correct the value.",
            "train.momentum: expected a valid number, got 'high'. Correct the value.",
            "preprocess.normalization: expected 'auto', 'ct', 'zscore', 'zscore_nonzero' or 'none', got 'zscor'. "
            "Did you mean zscore?",
            "preprocess.spacing_mm.2: expected one more value, got [1, 2]. Correct the value.",
            "preprocess.patch_size.2: expected a valid integer, got 'x'. Correct the value.",
            "preprocess.patch_size_2d: expected at most 2 items, got [1, 2, 3]. Correct the value.",
            "augment.scale: expected 0 < low <= high, got [2.0, 1.0]. Swap or correct them.",
            "augment.flip_axes.1: expected 'LR', 'AP' or 'SI', got 'XX'. Correct the value.",
            "sampel: unknown key. Did you mean sample?",
            "model: expected a section with keys, got 5. Correct the value.",
            "1: expected a key made of letters, got 1. Correct the value.",
            "infer.overlap: expected less than 1, got 1. Correct the value.",
        ]
    )


def test_the_message_is_led_by_the_file_and_the_count(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {epochs: 0, seed: x}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert str(caught.value).splitlines()[0] == f"{path}: 2 problems"


def test_a_key_that_is_given_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "train:\n  epochs: 3\n  seed: 1\n  epochs: 4\ninfer: {}\ntrain: {seed: 2}\n")
    assert problems(path) == (
        "train.epochs: expected the key once, got it on lines 2 and 4. Keep one.",
        "train: expected the key once, got it on lines 1 and 6. Keep one.",
    )


def test_values_that_belong_together_are_checked_together(tmp_path: Path) -> None:
    assert problems(written(tmp_path, "loss: {dice_weight: 0, ce_weight: 0}\n")) == (
        "loss: dice_weight, ce_weight: expected at least one above 0, got 0 and 0. Raise one.",
    )
    assert problems(overrides=("train.budget=1h30",)) == (
        "train.budget: duration: expected a time such as 90s, 10m or 1h30m, got '1h30'. Write number and unit.",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: [1\n", "expected YAML, got while parsing a flow sequence"),
        ("train:\n\tepochs: 3\n", "expected YAML, got while scanning for the next token"),
        ("- train\n", "expected sections with keys, got list. See configs/."),
        ("epochs\n", "expected sections with keys, got str. See configs/."),
    ],
)
def test_files_that_are_no_settings_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    (found,) = problems(written(tmp_path, text))
    assert found.startswith(problem)
    assert "\n" not in found


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == ("expected a YAML file, got nothing there. Check the path.",)
    assert problems(tmp_path) == ("expected a readable file, got 'Is a directory'. Check path and permissions.",)
    (tmp_path / "latin.yaml").write_bytes(b"model: {name: \xe9}\n")
    assert problems(tmp_path / "latin.yaml")[0].startswith("expected a YAML file in UTF-8, got 'utf-8' codec")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    assert problems(tmp_path / "large.yaml") == ("expected a YAML file of at most 1 MB, got more. Check the path.",)


def chain(first: str, link: str, length: int) -> str:
    """Values each of which names the one before, several times."""
    return f"a0: &a0 {first}\n" + "".join(f"a{n}: &a{n} {link.format(f'a{n - 1}')}\n" for n in range(1, length))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (chain("[x, x]", "[*{0}, *{0}]", 20), "more than 100,000 values, or aliases"),
        (chain("{k: 1}", "{{<<: [*{0}, *{0}, *{0}]}}", 12), "more than 100,000 values, or aliases"),
        ("train: &a {epochs: [*a]}\n", "more than 100,000 values, or aliases that lead back to themselves. Correct"),
        ("train: " + "[" * 100_000, "too many levels. Correct the file."),
        ("train: " + "{a: " * 60 + "}" * 60, "too many levels. Correct the file."),
        ("train: {epochs: !!int foo}\n", "a value that is not of the type it names. Correct the file."),
        ("train: {epochs: !!bool foo}\n", "a value that is not of the type it names. Correct the file."),
        ("train: {epochs: !!set {a, b}}\n", "the type !!set. Correct the file."),
        ("train: {epochs: !!binary gIGC}\n", "the type !!binary. Correct the file."),
        ("train: {epochs: " + "9" * 5000 + "}\n", "a number of 5000 characters. Correct the file."),
        ("train: {epochs: 1" + ":1" * 100_000 + "}\n", "a number of 200001 characters. Correct the file."),
        ('model: {name: "\\ud800"}\n', "'utf-8' codec can't encode character '\\ud800'"),
    ],
)
def test_yaml_that_would_fill_the_memory_or_break_off_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (found,) = problems(written(tmp_path, text))
    assert found.startswith(f"expected YAML, got {problem}")
    value = text.partition(": ")[2].strip()
    if text.startswith("train: {epochs: "):  # the same values, given with --set
        (found,) = problems(overrides=(f"train.epochs={value.removeprefix('{epochs: ').removesuffix('}')}",))
        assert "expected a YAML value after =, got " in found
        assert len(found) < 250


def test_what_looks_like_a_date_is_text() -> None:
    assert load_settings(overrides=["model.name=2024-01-01"]).model.name == "2024-01-01"
    assert problems(overrides=("train.epochs=2024-13-45",)) == (
        "train.epochs: expected a valid integer, got '2024-13-45'. Correct the value.",
    )


def test_aliases_are_read_and_an_override_changes_one_place_only(tmp_path: Path) -> None:
    path = written(tmp_path, "augment: {scale: &a [0.9, 1.1], gamma: *a}\nmodel: &m {}\ninfer: *m\n")
    settings = load_settings(path, ["infer.mirror=true"])
    assert settings.augment.scale == settings.augment.gamma == (0.9, 1.1)
    assert settings.infer.mirror


def test_many_problems_are_told_in_part(tmp_path: Path) -> None:
    found = problems(written(tmp_path, f"infer: {{window_size: [{'x, ' * 500}]}}\n"), tuple(["x"] * 3))
    assert found[3] == "infer.window_size.0: expected a valid integer, got 'x'. Correct the value."
    assert (len(found), found[-1]) == (51, "… and more. Correct these first.")


def test_numbers_stay_within_what_machines_count_with(tmp_path: Path) -> None:
    assert problems(overrides=("train.seed=1e30",)) == (
        "train.seed: expected a smaller number, got 1e+30. Correct the value.",
    )
    assert problems(overrides=("sample.batch_size=10000000000",))[0].startswith("sample.batch_size: expected at most")
    assert problems(overrides=("preprocess.spacing_mm=[1, 1, 1e30]",))[0].startswith("preprocess.spacing_mm.2: expect")
    assert problems(overrides=(f"train.budget={'9' * 400}d",))[0].startswith("train.budget: duration: expected a time")
    assert problems(overrides=(f"model.options.{'a.' * 3000}b=1",))[0].startswith("--set model.options.a.a.")


def test_yaml_tags_run_no_code(tmp_path: Path) -> None:
    (found,) = problems(written(tmp_path, "model: !!python/object/apply:os.getcwd []\n"))
    assert found.startswith("expected YAML, got could not determine a constructor")
