"""Metrics of fairness and accuracy: hard on the top K, differentiable on the catalogue softmax."""

from fudlr.common.factors import Factors, Scores
from fudlr.metrics.base import Metric, SummedMetric, surrogate
from fudlr.metrics.objective import Objective, Term, metric_gradient
from fudlr.metrics.resample import Interval, Null, bootstrap, permutation_null
from fudlr.metrics.score_function import DrawnLists, from_lists
from fudlr.metrics.scores import catalogue_softmax, top_and_ties, top_k
from fudlr.metrics.side import Seen, Side
from fudlr.metrics.statistics import Statistics, evaluate, evaluate_lists, statistics
from fudlr.metrics.table import METRICS, find_metric, from_function, load_metrics, register

__all__ = [
    "METRICS",
    "DrawnLists",
    "Factors",
    "Interval",
    "Metric",
    "Null",
    "Objective",
    "Scores",
    "Seen",
    "Side",
    "Statistics",
    "SummedMetric",
    "Term",
    "bootstrap",
    "catalogue_softmax",
    "evaluate",
    "evaluate_lists",
    "find_metric",
    "from_function",
    "from_lists",
    "load_metrics",
    "metric_gradient",
    "permutation_null",
    "register",
    "statistics",
    "surrogate",
    "top_and_ties",
    "top_k",
]
