"""Every causal LM of transformers that can be built small, and every kind of adapter of peft.

    python benchmarks/zoo.py      # all, in minutes; writes results/zoo.json and docs/models.md
    python benchmarks/zoo.py --only llama bloom adapters      # these rows of it again

Each model gets LoRA on its linear layers, with eager and SDPA attention. In float32 and float64,
on batches without padding and with padding on either side, the engine's per-sample gradients,
Hessian and Gauss-Newton products are held to autograd on batches of one (`zoo_judge.py`). Then each
model scores items as every recommender does, held to each item alone (`zoo_recommenders.py`).
Adapters: one of each kind of peft's, the same way (`zoo_adapters.py`). A row is exact, refused by
name, or wrong, which ends the script with an error. Types that cannot be built from a few sizes are
listed as not built.
"""

from __future__ import annotations

import argparse
import json
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import zoo_adapters
import zoo_page
import zoo_recommenders
from common import RESULTS, describe, write_result
from peft import LoraConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging
from zoo_judge import VOCABULARY, batches, judge

from fudlr_ext import label_logits

LARGEST = 3_000_000  # parameters
SECONDS = 40
STATES = ("exact", "refused", "wrong", "not built")
SIZES = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_size": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "moe_intermediate_size": 16,
    "ffn_hidden_size": 48, "shared_expert_intermediate_size": 16, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "d_inner": 48, "dense_intermediate_size": 48,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 1, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "rotary_dim": 8, "max_position_embeddings": 32, "n_positions": 32, "n_ctx": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "max_seq_len": 32, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "sliding_window": 16,
    "first_k_dense_replace": 1, "attention_dropout": 0.0, "state_size": 4, "lru_width": 32,
    "attention_window_size": 8, "mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 16,
    "mamba_d_ssm": 64, "mamba_chunk_size": 8, "chunk_size": 8, "mamba_n_groups": 1,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "reformer": {"is_decoder": True}, "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "dots1": {"n_shared_experts": 1}, "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 1},
}  # fmt: skip
LONG = {"vocab_size": zoo_recommenders.VOCABULARY} | dict.fromkeys(
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "sliding_window"),
    zoo_recommenders.POSITIONS,
)
RECURRENT = {"out_proj", "conv1d"}  # peft refuses LoRA on these in such models


def small(kind: str, attention: str = "eager", **changes: Any) -> nn.Module:
    """Return a model of this type, as small as its configuration allows."""
    config = AutoConfig.for_model(kind)
    sizes = {**SIZES, **changes}
    known = {name: value for name, value in sizes.items() if name in config.to_dict()}
    if "qk_rope_head_dim" in known:
        known |= {"head_dim": known["qk_rope_head_dim"], "num_key_value_heads": 4}
    known |= OWN.get(kind, {})
    for _ in range(4):  # some names are set by others
        try:
            config = AutoConfig.for_model(kind, **known)
            break
        except Exception as error:
            named = [name for name in known if f"'{name}'" in str(error)]
            if not named:
                raise
            known.pop(named[0])
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    size = sum(p.numel() for p in made.parameters())
    if size > LARGEST:
        raise ValueError(f"it has {size} parameters at these sizes")
    torch.manual_seed(0)
    config._experts_implementation = "eager"  # grouped products know no float64
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def adapted(kind: str, attention: str) -> nn.Module:
    """Return it with LoRA on those linears that a causal call runs, but its head and routers."""
    base = small(kind, attention)
    head = base.get_output_embeddings()  # type: ignore[operator]
    linears = {
        name
        for name, module in base.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head and "router" not in name
    }  # fmt: skip
    targets = sorted(_used(base, linears))
    try:
        return zoo_adapters.adapted(base, LoraConfig(r=2, target_modules=targets))
    except ValueError as error:
        if "Incompatible modules" not in str(error):
            raise
        targets = [name for name in targets if name.rpartition(".")[2] not in RECURRENT]
        config = LoraConfig(r=2, target_modules=targets)
        return zoo_adapters.adapted(small(kind, attention), config)


def _used(base: nn.Module, names: set[str]) -> set[str]:
    found: set[str] = set()
    handles = [
        base.get_submodule(n).register_forward_hook(lambda *_, n=n: found.add(n)) for n in names
    ]
    with torch.no_grad():
        label_logits(base, batches()["unpadded"])
    for handle in handles:
        handle.remove()
    return found


class SlowError(BaseException):
    """No Exception, which those who judge look for."""


@contextmanager
def limited() -> Iterator[None]:
    """Stop what takes longer than a small model may."""

    def stop(*_: Any) -> None:
        raise SlowError(f"took more than {SECONDS} s of CPU time")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def model_row(kind: str) -> dict[str, Any]:
    """Judge one type of model: the engine, then the recommenders."""
    try:
        with limited():
            return _model_row(kind)
    except SlowError as error:
        return {"result": "not built", "said": str(error)}


def _model_row(kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for attention in ("eager", "sdpa"):
        try:
            found = judge(adapted(kind, attention))
        except Exception as error:
            found = {"result": "not built", "said": f"{type(error).__name__}: {error}"[:200]}
        row[attention] = found
        if found["result"] == "not built" and attention == "eager":
            return {"result": "not built", "said": found["said"]}
    states = [row[attention]["result"] for attention in ("eager", "sdpa")]
    row["result"] = next(each for each in ("wrong", "refused", "exact") if each in states)
    row["recommenders"] = {}
    for name in zoo_recommenders.KINDS:
        try:
            model = small(kind, **LONG)
        except Exception as error:
            row["recommenders"][name] = {"result": "not built", "said": str(error)[:200]}
            continue
        for p in model.parameters():  # the usual deviation of 0.02 leaves attention uniform
            if p.dim() == 2:
                nn.init.normal_(p, std=0.15)
        row["recommenders"][name] = zoo_recommenders.judge(name, model)
    return row


def adapter_row(make: Any) -> dict[str, Any]:
    """Judge one kind of adapter."""
    try:
        model, forward = make()
    except Exception as error:
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return {"result": "not built", "said": said[:200]}
    return judge(model, forward)


def count(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many rows are in each state."""
    return {state: sum(row["result"] == state for row in rows) for state in STATES}


def main() -> None:
    """Judge all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="types of models, names of adapters, or adapters")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    models, adapters = {}, {}
    for kind in sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        if only is None or kind in only:
            models[kind] = model_row(kind)
            print(kind, json.dumps(models[kind])[:600], flush=True)
    for name, make in zoo_adapters.cases():
        if only is None or {name, "adapters"} & set(only):
            adapters[name] = adapter_row(make)
            print(name, json.dumps(adapters[name])[:300], flush=True)
    path = Path(RESULTS) / "zoo.json"
    again = []
    if only is not None and path.is_file():  # rows judged again take their places in the table
        before = json.loads(path.read_text())
        again = [*before["again"], {"rows": only, "machine": describe()}]
        models, adapters = before["models"] | models, before["adapters"] | adapters
    counts = {"models": count([*models.values()]), "adapters": count([*adapters.values()])}
    for name in zoo_recommenders.KINDS:
        rows = [row["recommenders"][name] for row in models.values() if "recommenders" in row]
        counts[name] = count(rows)
    print(json.dumps(counts, indent=1))
    tables = {"counts": counts, "again": again, "models": models, "adapters": adapters}
    write_result(path, "python benchmarks/zoo.py", **tables)
    page = Path(RESULTS).parents[1] / "docs" / "models.md"
    page.write_text(zoo_page.page(json.loads(path.read_text())))
    if any(each["wrong"] for each in counts.values()):
        raise SystemExit("a row is wrong")


if __name__ == "__main__":
    main()
