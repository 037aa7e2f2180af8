"""Probability: the distributions of pixels, likelihoods that turn features into them, and the objective."""

from resvae.probability.distributions import DiscretizedLogistic, DiscretizedLogisticMixture
from resvae.probability.likelihoods import (
    Bernoulli,
    Gaussian,
    Likelihood,
    LikelihoodChoice,
    Logistic,
    LogisticMixture,
    make_likelihood,
)
from resvae.probability.objective import ElboTerms, KlSchedule, importance_bound, running_bound, weighted_elbo
from resvae.probability.subpixel import SubPixelMixture as SubPixelMixture

__all__ = [
    "Bernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "ElboTerms",
    "Gaussian",
    "KlSchedule",
    "Likelihood",
    "LikelihoodChoice",
    "Logistic",
    "LogisticMixture",
    "importance_bound",
    "make_likelihood",
    "running_bound",
    "weighted_elbo",
]
