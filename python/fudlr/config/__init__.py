"""Options of a run as validated, frozen records, and their YAML form."""

from fudlr.config.run import RunConfig, dump_config, field_names, load_config, merge, to_plain
from fudlr.config.sections import (
    LLAMA_LINEARS,
    DataConfig,
    DebiasConfig,
    LoraSettings,
    ModelConfig,
    RecommenderConfig,
    RecordConfig,
    TrainConfig,
)

__all__ = [
    "LLAMA_LINEARS",
    "DataConfig",
    "DebiasConfig",
    "LoraSettings",
    "ModelConfig",
    "RecommenderConfig",
    "RecordConfig",
    "RunConfig",
    "TrainConfig",
    "dump_config",
    "field_names",
    "load_config",
    "merge",
    "to_plain",
]
