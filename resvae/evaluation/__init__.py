"""Measuring models and drawing what they make."""

from resvae.evaluation.classification import Classification, check_labels, classify
from resvae.evaluation.distances import Distances, distances, feature_network, generate
from resvae.evaluation.full import full_report
from resvae.evaluation.grids import beside, image_grid, save_grid
from resvae.evaluation.metrics import ActiveUnits
from resvae.evaluation.neighbours import Neighbours, nearest, neighbours
from resvae.evaluation.page import write_report
from resvae.evaluation.probe import Probe, linear_probe, probe
from resvae.evaluation.report import Report, evaluate

__all__ = [
    "ActiveUnits",
    "Classification",
    "Distances",
    "Neighbours",
    "Probe",
    "Report",
    "beside",
    "check_labels",
    "classify",
    "distances",
    "evaluate",
    "feature_network",
    "full_report",
    "generate",
    "image_grid",
    "linear_probe",
    "nearest",
    "neighbours",
    "probe",
    "save_grid",
    "write_report",
]
