"""``volseg serve`` with workers that have no network, and so are ready at once: bright voxels are the organ.

python stub_node.py <folder> <section.key=value> ...
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from pipeline.core.labels import LabelTable
from pipeline.core.volume import LabelMap

TABLE = LabelTable({1: "liver"})


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def work() -> None:
    from pipeline.data.dicom import open_series
    from pipeline.data.legend import target_colors
    from pipeline.data.volumes import read_image, write_label_map
    from pipeline.export.dicom_objects import DicomOutput, write_objects
    from pipeline.export.dicom_source import Segmented, SourceSeries
    from pipeline.export.overview import picture

    say(json.dumps({"ready": True, "channels": ["CT"], "organs": 1}))
    for line in sys.stdin:
        task, began = json.loads(line), time.monotonic()
        try:
            source, out = Path(task["input"]), Path(task["out"])
            image = read_image(source)
            label_map = LabelMap((image.array[0] > image.array.mean()).astype(np.uint8), image.grid)
            out.mkdir(exist_ok=True)
            if "mask" in task:
                files = {"mask": out / f"result.{task['mask']}"}
                write_label_map(label_map, files["mask"])
            else:
                case = Segmented(SourceSeries.of(open_series(source)), label_map, TABLE, target_colors(TABLE), image)
                output = DicomOutput(("seg", "sr"))
                files = output.files(out, "result")
                write_objects(case, files, output)
                Picture.fromarray(picture(case)).resize((750, 350)).save(out / "thumbnail.jpg")
            names = [path.name for path in files.values()]
            answer = {"done": True, "organs": {"liver": label_map.volumes_ml()[1]}, "notes": [], "files": names}
            answer["seconds"] = round(time.monotonic() - began, 2)
        except Exception as error:
            answer = {"done": False, "reason": str(error), "again": False}
        say(json.dumps(answer))


def serve(folder: str, *overrides: str) -> None:
    from pipeline.config.yaml_file import load_as
    from pipeline.service.node import Node
    from pipeline.service.settings import NodeSettings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    path = "import sys; sys.path[:] = json.loads(sys.argv[1]); import stub_node; stub_node.work()"
    command = [sys.executable, "-c", f"import json; {path}", json.dumps(sys.path)]
    settings = load_as(NodeSettings, None, overrides)
    with Node("stub", Path(folder), settings, command) as node:
        if node.dicom_port is not None:
            say(f"DICOM: VOLSEG@127.0.0.1:{node.dicom_port}")
        say(f"Page: http://127.0.0.1:{node.http.port}/")
        node.wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])
