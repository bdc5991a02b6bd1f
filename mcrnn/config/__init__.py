"""The YAML files: the sections of a configuration, those of a search, and loading them with errors that name lines.

Imports only pydantic, PyYAML and `mcrnn.errors`, so that a registered model can read its configuration anywhere.
"""

from mcrnn.config.search import SearchConfig
from mcrnn.config.sections import Configuration, DataConfig, ModelConfig, TrainConfig, ValidationConfig

__all__ = ["Configuration", "DataConfig", "ModelConfig", "SearchConfig", "TrainConfig", "ValidationConfig"]
