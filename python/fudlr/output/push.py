"""The debiased adapter with its model card, to a model hub: an explicit command, never by itself.

What goes up is peft's two files and the card. Both name the base model by the name that other
people know it by, never by a folder of this machine.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fudlr.common.errors import DataError, FudlrError, UsageError
from fudlr.common.reading import read_json
from fudlr.lora import ADAPTER_FILES

CARD = "README.md"


def push_adapter(
    result: Path, repository: str, *, base: str | None = None, private: bool = False
) -> str:
    """Upload `result`/adapter to `repository`, which is made where it is not there yet.

    Args:
        result: A folder that `fudlr debias` wrote.
        repository: `name` or `owner/name` on the hub of `huggingface_hub` (HF_ENDPOINT, HF_TOKEN).
        base: What others call the base model; as the adapter has it where None.
        private: Whether a new repository is private.

    Returns:
        Where it is.

    Raises:
        UsageError: The base model is known by a folder of this machine alone.
        DataError: The adapter or its card is missing.
        FudlrError: The hub refused, or cannot be reached.
    """
    asked = f"the adapter of {result} was to be pushed to {repository}"
    folder = result / "adapter"
    missing = [name for name in (*ADAPTER_FILES, CARD) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            asked, f"{folder / missing[0]} is missing", "Name a folder that `fudlr debias` wrote"
        )
    config = read_json(folder / ADAPTER_FILES[0], dict[str, Any])
    known = base or str(config.get("base_model_name_or_path") or "")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", known) or (base is None and Path(known).exists()):
        raise UsageError(
            asked,
            f"its base model is {known or 'not named'}, which nobody else can load",
            "Name it as the hub does, with --base OWNER/NAME",
        )
    hub: Any = importlib.import_module("huggingface_hub")
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        shutil.copyfile(folder / ADAPTER_FILES[1], staged / ADAPTER_FILES[1])
        text = json.dumps({**config, "base_model_name_or_path": known}, indent=2)
        (staged / ADAPTER_FILES[0]).write_text(text + "\n", encoding="utf-8")
        card = (folder / CARD).read_text(encoding="utf-8")
        card = _with_base(card, known)
        card = _without_paths(card, result)
        (staged / CARD).write_text(card, encoding="utf-8")
        try:
            api = hub.HfApi()
            made = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=staged,
                commit_message="Debiased adapter and its card",
            )
        except Exception as error:  # the client's own, of its transport, of what it checks
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FudlrError(
                asked,
                f"the hub did not take it ({reason})",
                "Log in (`hf auth login`, or HF_TOKEN), and check the name and the network",
            ) from error
    return str(made)


def _with_base(card: str, name: str) -> str:
    """The card with the base model's public name in its front matter and its example."""
    card = re.sub(r"(?m)^base_model: .*\n", "", card, count=1)
    card = card.replace("library_name: peft\n", f"library_name: peft\nbase_model: {name}\n", 1)
    return card.replace("PATH OF THE BASE MODEL", name)


def _without_paths(card: str, result: Path) -> str:
    """The card without the places of this machine that the result's summary knows."""
    summary = read_json(result / "summary.json", dict[str, Any])
    config = summary.get("config", {})
    known = [summary.get("run"), summary.get("adapter"), str(result.resolve())]
    for section in ("data", "model", "lora", "recommender"):
        known += config.get(section, {}).values() if isinstance(config.get(section), dict) else []
    paths = {each for each in known if isinstance(each, str) and "/" in each}
    for path in sorted(paths, key=len, reverse=True):
        card = card.replace(path, "(not public)")
    return card
