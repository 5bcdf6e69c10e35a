"""Options of a run as validated, frozen records, and their YAML form."""

from fudlr.config.run import (
    AFTER_TRAINING,
    RunConfig,
    describe_fields,
    dump_config,
    field_names,
    load_config,
    merge,
    merge_trained,
    read_yaml,
    to_plain,
    trained_options,
)
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
    "AFTER_TRAINING",
    "LLAMA_LINEARS",
    "DataConfig",
    "DebiasConfig",
    "LoraSettings",
    "ModelConfig",
    "RecommenderConfig",
    "RecordConfig",
    "RunConfig",
    "TrainConfig",
    "describe_fields",
    "dump_config",
    "field_names",
    "load_config",
    "merge",
    "merge_trained",
    "read_yaml",
    "to_plain",
    "trained_options",
]
