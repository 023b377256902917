# The public API, in one place: `pipeline/__init__.py` imports each name from here when it is first used.

# values
from .config.settings import Settings as Settings
from .core.grid import Grid as Grid
from .core.labels import LabelTable as LabelTable
from .core.volume import Image as Image
from .core.volume import LabelMap as LabelMap
from .data.dataset import Dataset as Dataset
from .preprocess.plan_file import Plan as Plan

# files
from .config.yaml_file import load_settings as load_settings
from .data.dicom import inspect as inspect
from .data.dicom import open_series as open_series
from .data.layouts import open_dataset as open_dataset
from .data.volumes import read_image as read_image
from .data.volumes import read_label_map as read_label_map
from .data.volumes import write_image as write_image
from .data.volumes import write_label_map as write_label_map

# parts
from .evaluate.metrics import Measures as Measures
from .evaluate.scoring import evaluate_pairs as evaluate_pairs
from .infer.inferer import StreamingInferer as StreamingInferer
from .infer.segment import predict_image as predict_image
from .model.spec import build_network as build_network
from .preprocess.interpolation import resample as resample
from .preprocess.transforms import transforms as transforms
from .stages.predict import Predictor as Predictor
from .stages.prediction_files import Output as Output
from .stages.prepare import make_plan as make_plan
from .train.loss import SegmentationLoss as SegmentationLoss

# steps
from .stages.evaluate import evaluate as evaluate
from .stages.report import report as report
from .stages.predict import predict as predict
from .stages.prepare import preprocess as preprocess
from .stages.train import train as train
from .train.state import Callbacks as Callbacks
