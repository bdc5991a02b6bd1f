"""The YAML file: sections of a configuration, the search section, the search space, and loading with line numbers.

Imports pydantic and PyYAML only, so that a registered model can read its configuration anywhere.
"""

from mcrnn.config.search import SearchConfig
from mcrnn.config.sections import Configuration, DataConfig, ModelConfig, TrainConfig, ValidationConfig

__all__ = ["Configuration", "DataConfig", "ModelConfig", "SearchConfig", "TrainConfig", "ValidationConfig"]
