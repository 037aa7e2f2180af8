"""Measuring models and drawing what they make. torchmetrics and scikit-learn are imported where they are used."""

from resvae.evaluation.bounds import ActiveUnits
from resvae.evaluation.classification import Classification as Classification
from resvae.evaluation.distances import distances, feature_network
from resvae.evaluation.grids import beside, image_grid, save_grid
from resvae.evaluation.measure import Asked, Found, Measure
from resvae.evaluation.probe import linear_probe
from resvae.evaluation.reconstruction import Reconstruction as Reconstruction
from resvae.evaluation.report import Report, evaluate, generate, write_report

__all__ = [
    "ActiveUnits",
    "Asked",
    "Found",
    "Measure",
    "Report",
    "beside",
    "distances",
    "evaluate",
    "feature_network",
    "generate",
    "image_grid",
    "linear_probe",
    "save_grid",
    "write_report",
]
