"""Measuring models and drawing what they make."""

from resvae.evaluation.grids import beside, image_grid, save_grid
from resvae.evaluation.metrics import ActiveUnits
from resvae.evaluation.report import Report, evaluate

__all__ = ["ActiveUnits", "Report", "beside", "evaluate", "image_grid", "save_grid"]
