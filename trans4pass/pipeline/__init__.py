"""A run: its folder, its stages in order, what they are built from. `trans4pass.pipeline.run` runs them."""

from .context import RunContext
from .label_stage import LabelStage
from .stage import Stage, StageSettings
from .statistics_stage import StatisticsStage
from .train_stage import TrainStage

__all__ = ["LabelStage", "RunContext", "Stage", "StageSettings", "StatisticsStage", "TrainStage"]
