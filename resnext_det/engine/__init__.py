"""Training and evaluation."""

from .checks import check_config
from .job import format_results, train_or_evaluate
from .launch import argument_parser, run_job
from .setup import prepare
from .trainer import Trainer

__all__ = [
    "Trainer",
    "argument_parser",
    "check_config",
    "format_results",
    "prepare",
    "run_job",
    "train_or_evaluate",
]
