"""Commands beside the steps: data and DICOM, previews, the demo, pruning, networks, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import (
    CaseTimeout,
    Config,
    Device,
    Jobs,
    KeepHeaderText,
    Layout,
    Neurological,
    OutFolder,
    SegType,
    Set,
)
from pipeline.data.layout_names import WRITTEN_LAYOUTS

config_app = typer.Typer(help="Settings: show them resolved, or their JSON schema for editors.", no_args_is_help=True)

model_app = typer.Typer(help="A model: its card, and whether its files are whole.", no_args_is_help=True)
Model = Annotated[str, typer.Argument(help="Model folder, or a name that `volseg models` lists.")]
License = Annotated[
    str | None, typer.Option("--license", help="Of the weights, for the model card, e.g. cc-by-4.0 (names of SPDX).")
]


def convert(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder or datalist.")],
    out: OutFolder,
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(WRITTEN_LAYOUTS)}.")],
    layout: Layout = None,
    link: Annotated[bool, typer.Option("--link", help="Hard links instead of copies of files that fit.")] = False,
    keep_header_text: KeepHeaderText = False,
    jobs: Jobs = None,
    case_timeout: CaseTimeout = None,
) -> None:
    """Write a dataset in another layout, e.g. for nnU-Net: -o nnUNet_raw/Dataset501_Liver --to nnunet."""
    from pipeline.console.bars import progress_bars
    from pipeline.console.printing import print_batch
    from pipeline.core.errors import result_of
    from pipeline.engine.local import case_limit
    from pipeline.stages.convert import convert as run

    with progress_bars() as bars, case_limit(case_timeout):
        batch = result_of(
            run,
            dataset,
            out,
            to,
            layout=layout,
            link=link,
            keep_header_text=keep_header_text,
            jobs=jobs,
            progress=bars.update,
        )
    print_batch(batch, "converted", out)
    raise typer.Exit(batch.exit_code)


def inspect(
    path: Annotated[Path, typer.Argument(help="Folder, zip archive, DICOMDIR or file.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all that was found as JSON.")] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Judge as if missing and uneven slices were interpolated.")
    ] = False,
    show_names: Annotated[
        bool, typer.Option("--show-names", help="Show texts that may name the patient: names, dates, descriptions.")
    ] = False,
) -> None:
    """List the series of DICOM files, and whether each can be used as a volume, with the reason; SEG and RTSTRUCT, too.

    Exit code 3: none can be used.
    """
    from pipeline.console.printing import print_series
    from pipeline.core.files import write_json
    from pipeline.data.dicom import inspect as inspect_dicom

    found = inspect_dicom(path, allow_gaps=allow_gaps, names=show_names)
    print_series(found)
    if json_file is not None:
        write_json(json_file, found.to_json())
    raise typer.Exit(0 if any(series.usable or series.labels for series in found.series) else 3)


def dicom(
    mask: Annotated[Path, typer.Argument(help="Label map, with a labels.json beside it.")],
    source: Annotated[Path, typer.Argument(metavar="SERIES", help="Folder, zip archive or file of its DICOM series.")],
    out: OutFolder,
    objects: Annotated[str, typer.Option("--objects", help="Some of seg,sr,rtstruct,sc; sr brings seg.")] = "seg,sr",
    seg_type: SegType = "binary",
    series: Annotated[
        str | None, typer.Option("--series", help="Number (see inspect) or modality; by default the mask's own.")
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="The mask was made with gaps interpolated, too.")
    ] = False,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="JSON file of label names; by default those beside the mask.")
    ] = None,
    made_by: Annotated[
        str, typer.Option("--made-by", help="What made the mask: a program's name, or manual.")
    ] = "volseg",
    neurological: Neurological = False,
) -> None:
    """Write a mask as DICOM objects that belong to its series: segmentation, measurements, contours, overview.

    Each is read back and compared with the mask, pixel by pixel, before the command ends with exit code 0.
    """
    from pipeline.console.bars import print_line
    from pipeline.data.volume_file import series_source
    from pipeline.export.dicom_objects import DicomOutput
    from pipeline.stages.dicom import write_dicom

    kinds = tuple(name.strip() for name in objects.split(",") if name.strip())
    written = write_dicom(
        mask,
        source if series is None else series_source(source, series, allow_gaps=allow_gaps),
        out,
        output=DicomOutput(kinds, seg_type, neurological),
        labels=labels,
        allow_gaps=allow_gaps,
        made_by=made_by,
    )
    for note in written.notes:
        print_line(note)
    for path in written.files.values():
        print_line(f"Written: {path}")


def phantom(
    out: Annotated[Path, typer.Argument(help="Dataset folder to write.")],
    kind: Annotated[str, typer.Option(help="torso: CT or MR volumes. fundus: photographs of the eye.")] = "torso",
    cases: Annotated[int | None, typer.Option(min=1, help="Cases to train with; 24, or 50 of fundus.")] = None,
    tests: Annotated[int | None, typer.Option(min=0, help="Held-out cases; 8, or 51 of fundus.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of anatomy and noise.")] = 0,
    contrast: Annotated[str, typer.Option(help="Of torso: ct or mr.")] = "ct",
    size: Annotated[str, typer.Option(help="Of torso: small or full.")] = "small",
) -> None:
    """Write a synthetic dataset: torsos in nnU-Net's layout, or fundus photographs in that of Drishti-GS1."""
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.core.errors import ConfigError
    from pipeline.phantom.fundus import write_fundus
    from pipeline.phantom.torso import write_phantom

    if kind not in ("torso", "fundus"):
        raise ConfigError([f"kind: expected torso or fundus, got {kind!r}. Change it."], "phantom")
    if kind == "fundus" and (contrast, size) != ("ct", "small"):
        raise ConfigError(["contrast, size: expected none with kind fundus, got one. Remove it."], "phantom")
    usual = (24, 8) if kind == "torso" else (50, 51)
    cases, tests = cases or usual[0], usual[1] if tests is None else tests
    with progress_bars() as bars:
        if kind == "fundus":
            write_fundus(out, cases=cases, tests=tests, seed=seed, progress=bars.update)
        else:  # contrast and size are checked there
            named = {"contrast": contrast, "size": size}
            write_phantom(out, cases=cases, tests=tests, seed=seed, progress=bars.update, **named)  # type: ignore[arg-type]
    print_line(f"{cases} cases and {tests} held-out cases: {out}")


def preview(
    prepared: Annotated[Path, typer.Argument(help="Folder that `volseg preprocess` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file, or HTML page.")] = Path("preview.png"),
    config: Config = None,
    overrides: Set = None,
    fold: Annotated[int, typer.Option("--fold", min=0, help="Whose training cases.")] = 0,
    patches: Annotated[int, typer.Option("--patches", min=1, max=50, help="How many to draw.")] = 6,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="By default train.seed, as training.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Channel to show; by default the first.")] = None,
    neurological: Neurological = False,
) -> None:
    """Draw the patches that training would see, augmented, and every augmentation alone at its strongest."""
    from pipeline.config.yaml_file import load_settings
    from pipeline.console.bars import print_line
    from pipeline.stages.preview import preview as run

    settings = load_settings(config, overrides or ())
    drawn = run(
        prepared,
        out,
        settings,
        fold=fold,
        patches=patches,
        seed=seed,
        channel=channel,
        neurological=neurological,
    )
    for text in drawn.texts:
        print_line(text)
    print_line(f"Look at {drawn.path}")


def demo(
    out: OutFolder = Path("demo"),
    config: Config = None,
    overrides: Set = None,
    device: Device = None,
) -> None:
    """Segment a real hippocampus, then run everything on phantoms: a few minutes on two processor cores."""
    from pipeline.config.yaml_file import load_settings
    from pipeline.console.bars import print_line, progress_bars
    from pipeline.console.printing import print_demo
    from pipeline.stages.demo import DEMO_SETTINGS, run_demo
    from pipeline.train.state import Callbacks

    settings = load_settings(config or DEMO_SETTINGS, overrides or ())
    with progress_bars() as bars:
        summary = run_demo(
            out,
            settings,
            device=device,
            progress=bars.update,
            callbacks=Callbacks(bars.on_start, bars.on_step, bars.on_epoch, print_line),
        )
    print_demo(summary, out)


def models() -> None:
    """List the models that come with volseg, which `volseg predict` takes by name."""
    from pipeline.console.printing import print_models
    from pipeline.model.zoo import zoo_model, zoo_names

    print_models([zoo_model(each) for each in zoo_names()])


@model_app.command("show")
def model_show(model: Model) -> None:
    """Show the model card: what it finds, how well, network, data, limits and licence."""
    from pipeline.console.bars import print_line
    from pipeline.model.readme import written_card
    from pipeline.model.zoo import model_folder

    folder = model_folder(model)
    text = written_card(folder)
    if text is None:  # only now, since what makes one imports torch
        from pipeline.stages.model_card import card_of

        text = card_of(folder)
    for line in (*text.splitlines(), "", f"Folder: {folder}"):
        print_line(line)


@model_app.command("verify")
def model_verify(model: Model) -> None:
    """Compare the files with those that were shared, and the weights with the network; name the first that is wrong."""
    from pipeline.console.bars import print_line
    from pipeline.stages.model_card import verify_model

    found = verify_model(model)
    files = "it has no manifest.json to compare files with" if found.files is None else f"{found.files} files as noted"
    networks = "weights that fit the network" if found.networks == 1 else f"weights that fit {found.networks} networks"
    print_line(f"{found.folder}: all right: {files}, {networks}.")


def prune(
    model: Annotated[Path, typer.Argument(help="Model folder of unetpp or unetplus, trained with deep supervision.")],
    prepared: Annotated[Path, typer.Option("--prepared", help="Folder that `volseg preprocess` wrote for it.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Model folder to write; by default MODEL_pruned.")
    ] = None,
    folds: Annotated[
        list[int] | None, typer.Option("--fold", help="Folds whose validation cases decide; by default all.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Dice points (hundredths) below the best that are good enough.")
    ] = 0.5,
    device: Device = None,
) -> None:
    """Score every level of a UNet++ and write the smallest one that is good enough as a model of its own."""
    from pipeline.console.bars import progress_bars
    from pipeline.console.printing import print_pruning
    from pipeline.stages.prune import prune as run

    source = model.resolve()
    target = out or source.with_name(f"{source.name}_pruned")
    with progress_bars() as bars:
        result = run(
            model, prepared, target, folds=folds, tolerance_points=tolerance, device=device, progress=bars.update
        )
    print_pruning(result, target)


def share(
    model: Annotated[Path, typer.Argument(help="Model folder, also of an ensemble.")],
    out: OutFolder,
    half: Annotated[bool, typer.Option("--half", help="Weights in 16 bits: half the size, nearly the same.")] = False,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="Folder that `volseg evaluate` wrote, for the model card.")
    ] = None,
    license: License = None,
) -> None:
    """Write a model folder to give away: it predicts the same, and names no case, path, dataset or machine.

    With a model card, README.md, to which you may add: one that was edited is never overwritten.
    """
    from pipeline.console.bars import print_line
    from pipeline.stages.share import share as run

    written = run(model, out, half=half, scores=scores, license=license)
    print_line(f"{len(written)} files to share: {out} ({', '.join(written)})")


def import_nnunet(
    results: Annotated[
        Path, typer.Argument(help="nnU-Net's results folder, of a model or a dataset, or a zip archive it exported.")
    ],
    out: OutFolder,
    configuration: Annotated[
        str | None, typer.Option("--configuration", help="Such as 3d_fullres, where there are several models.")
    ] = None,
    folds: Annotated[
        list[str] | None, typer.Option("--fold", help="Folds to take: numbers or all; by default all with a number.")
    ] = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="final or best.")] = "final",
    license: License = None,
) -> None:
    """Write a trained nnU-Net model as a model folder, which `volseg predict` takes: the same masks, in less memory."""
    from pipeline.console.bars import print_line
    from pipeline.interop.nnunet import import_nnunet as run

    found = run(results, out, configuration=configuration, folds=folds or (), checkpoint=checkpoint, license=license)
    for note in found.notes:
        print_line(note)
    named = ", ".join(f"fold {fold} as {number}" for fold, number in found.folds.items())
    print_line(f"{found.network}, {named}: {out}. Next: `volseg predict {out} IMAGES -o masks`")


def import_totalsegmentator(
    weights: Annotated[Path, typer.Argument(help="Folder with the weights that TotalSegmentator downloaded.")],
    out: OutFolder,
    task: Annotated[
        str, typer.Option("--task", help="total, total_fast, total_fastest, total_mr, total_mr_fast, total_mr_fastest.")
    ] = "total",
    license: License = None,
) -> None:
    """Write the parts of a task of TotalSegmentator as one model folder, with the published names and values."""
    from pipeline.console.bars import print_line
    from pipeline.interop.totalsegmentator import import_totalsegmentator as run

    found = run(weights, out, task=task, license=license)
    print_line(
        f"{found.organs} organs of {', '.join(found.parts)}: {out}. Next: `volseg predict {out} IMAGES -o masks`"
    )


def export(
    model: Annotated[str, typer.Argument(help="Model folder, or a name that `volseg models` lists.")],
    to: Annotated[str, typer.Option("--to", help="monai-bundle, onnx or torch-export.")],
    out: OutFolder,
    folds: Annotated[list[int] | None, typer.Option("--fold", help="Folds to average; by default all.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override one setting of prediction: infer.key=value.")
    ] = None,
) -> None:
    """Write a model that runs without volseg: a MONAI bundle, an ONNX file, or a program of PyTorch.

    It is compared with the model's own networks before it is written.
    """
    from pipeline.console.bars import print_line
    from pipeline.stages.export import export as run

    written = run(model, out, to, folds=folds, settings=overrides)
    print_line(f"{len(written)} files: {out} ({', '.join(written)})")


def networks(
    patch: Annotated[int, typer.Option(min=1, help="Edge of the patch; the next legal size is taken.")] = 64,
    in_channels: Annotated[int, typer.Option(min=1, help="Channels of the image.")] = 1,
    out_channels: Annotated[int, typer.Option(min=1, help="Classes, background included.")] = 2,
) -> None:
    """List the networks: parameters, multiply-adds for a patch, size of the output, source."""
    from pipeline.console.printing import print_networks

    print_networks(patch, in_channels, out_channels)


def serve(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the node: its queue, files and audit log.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file, such as configs/node/node.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override one setting, e.g. archive.to=PACS@10.0.0.5:104.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Studies at a time; by default one.")] = None,
    device: Device = None,
) -> None:
    """Run a node beside a PACS: studies in by C-STORE or DICOMweb, SEG and SR back, a status page, masks over HTTP.

    It listens on this computer alone unless the settings open it. It needs what the extra "service" installs.
    """
    from importlib.util import find_spec

    from pipeline.core.errors import VolsegError

    needed = ("pynetdicom", "dicomweb_client", "requests", "fastapi", "uvicorn", "prometheus_client")
    lacking = [name for name in needed if find_spec(name) is None]
    if lacking:
        raise VolsegError(f"serve: expected {', '.join(lacking)}, got none. Run pip install 'volseg[service]'.")
    from pipeline.config.yaml_file import load_as
    from pipeline.console.bars import print_line
    from pipeline.model.zoo import model_folder
    from pipeline.service.node import Node
    from pipeline.service.settings import NodeSettings

    more = [f"work.workers={workers}"] * (workers is not None) + [f"work.device={device}"] * (device is not None)
    settings = load_as(NodeSettings, config, [*(overrides or ()), *more])
    with Node(model_folder(model), out, settings) as node:
        listen = settings.listen
        if node.dicom_port is not None:
            print_line(f"DICOM: {listen.ae_title}@{listen.host}:{node.dicom_port}")
        print_line(f"Page: {'https' if listen.certificate else 'http'}://{listen.host}:{node.http.port}/")
        node.wait()


@config_app.command("show")
def config_show(config: Config = None, overrides: Set = None) -> None:
    """Print all settings as they would be used."""
    from pipeline.config.yaml_file import load_settings, save_settings

    typer.echo(save_settings(load_settings(config, overrides or ())), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the settings file."""
    from pipeline.config.yaml_file import json_schema

    typer.echo(json_schema())
