"""Configurations as Hydra composes them, in a fraction of the time where only values differ."""

import copy
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from trans4pass.pipeline.launch import register_models

register_models()
CONFIGS = Path(__file__).parents[1] / "configs"


@cache
def chosen(tool: str, *choices: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(tool, list(choices))


def composed(tool: str, *overrides: str) -> DictConfig:
    """configs/<tool>.yaml with what would be typed behind it.

    Hydra takes up to half a second to choose files, so values are set, by its own means, on what it once chose.
    """
    choices = [text for text in overrides if chooses(text)]
    config = copy.deepcopy(chosen(tool, *choices))
    values = OverridesParser.create().parse_overrides([text for text in overrides if text not in choices])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


def chooses(override: str) -> bool:
    """Whether it chooses a file of a group, or is Hydra's own."""
    key = override.lstrip("+~").partition("=")[0]
    return "@" in key or key.startswith("hydra") or (CONFIGS / key).is_dir()
