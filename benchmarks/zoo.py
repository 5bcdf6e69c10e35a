"""Every causal LM of transformers that can be built small, and every LoRA-like adapter of peft.

    python benchmarks/zoo.py                      # all; writes benchmarks/results/zoo.json
    python benchmarks/zoo.py --only llama bloom LOHA

Each model gets LoRA on its linear layers, and per-sample gradients of one unpadded and one padded
batch in float32. The truth is autograd on batches of one sample in float64. A row is `exact` where
the engine's error is at most four times that of plain autograd in float32 (and 1e-5, what rounding
makes of sums in another order), `refused` where the engine said so in an `EngineError`, and `wrong`
otherwise, which ends the script with an error. Types that cannot be built from a few sizes are left
out and counted. Adapters: one of each of peft's types and kinds on a small Llama, the same way.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fudlr_ext import Engine, EngineError, label_logits, label_loss

FACE = (label_logits, label_loss)
VOCABULARY, SAMPLES, POSITIONS = 48, 3, 7
SIZES = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_size": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "moe_intermediate_size": 16,
    "ffn_hidden_size": 48, "shared_expert_intermediate_size": 16, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "d_inner": 48,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 1, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "rotary_dim": 8, "max_position_embeddings": 32, "n_positions": 32, "n_ctx": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "max_seq_len": 32, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "sliding_window": 16,
    "first_k_dense_replace": 1, "attention_dropout": 0.0,
}  # fmt: skip


def small(kind: str) -> nn.Module:
    """Return a model of this type, as small as its configuration allows."""
    config = AutoConfig.for_model(kind)
    known = {name: value for name, value in SIZES.items() if name in config.to_dict()}
    if "qk_rope_head_dim" in known:
        known.pop("head_dim", None)
    if kind == "gpt_neo":
        known |= {"attention_types": [[["global", "local"], 1]], "window_size": 4}
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
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 3_000_000:
        raise ValueError(f"it has {size} parameters at these sizes")
    torch.manual_seed(0)
    config._experts_implementation = "eager"  # grouped products know no float64
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return]


def batches() -> list[dict[str, Tensor]]:
    """One batch without padding, and one with padding behind."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (SAMPLES, POSITIONS), generator=generator)
    labels = torch.where(torch.arange(POSITIONS) >= POSITIONS - 3, ids, -100)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    padded = {"input_ids": ids * mask, "attention_mask": mask}
    padded["labels"] = torch.where(mask == 1, labels, -100)
    return [{"input_ids": ids, "labels": labels}, padded]


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The LoRA matrices in the engine's order."""
    parts = (".lora_A.default.", ".lora_B.default.")
    return [p for n, p in model.named_parameters() if any(part in n for part in parts)]


def plain(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Per-sample gradients by autograd, one sample a batch, its padding as it is."""
    rows = []
    for i in range(SAMPLES):
        one = {k: v[i : i + 1] for k, v in batch.items()}
        loss = label_loss(label_logits(model, one), one)[0]
        found = torch.autograd.grad(
            loss, matrices(model), allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def judge(model: nn.Module) -> dict[str, Any]:
    """Compare the engine with the truth on both batches."""
    model.eval()
    try:
        engine = Engine(model)
    except EngineError as error:
        return {"result": "refused", "said": str(error)}
    for p in matrices(model):
        p.requires_grad_(True)
    try:
        exact = copy.deepcopy(model).double()
        truths = [plain(exact, batch) for batch in batches()]
    except Exception as error:
        return {"result": "not built", "said": f"no truth: {type(error).__name__}: {error}"[:200]}
    row: dict[str, Any] = {"result": "exact", "errors": [], "paths": []}
    for batch, truth in zip(batches(), truths, strict=True):
        rounding = float((plain(model, batch) - truth).norm() / truth.norm())
        try:
            got = engine.sample_grads(*FACE, batch)
        except EngineError as error:
            return {"result": "refused", "said": str(error)}
        except Exception as error:
            return {"result": "wrong", "said": f"{type(error).__name__}: {error}"[:300]}
        off = float((got - truth).norm() / truth.norm())
        row["errors"].append(off)
        row["paths"].append(engine.report().fused_layers)
        if not off <= max(4 * rounding, 1e-5):
            row |= {"result": "wrong", "rounding": rounding, "report": str(engine.report())}
    return row


def adapted(base: nn.Module, config: Any) -> nn.Module:
    """Wrap in an adapter, none of whose parameters is zero."""
    model: nn.Module = get_peft_model(base, config)  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if "lora_B" in name or ("lora_" in name and not p.any()):
            nn.init.normal_(p, std=0.2)
    return model


def used(base: nn.Module, names: set[str]) -> set[str]:
    """Those linears that a causal call without images or encoders runs."""
    found: set[str] = set()
    handles = [
        base.get_submodule(n).register_forward_hook(lambda *_, n=n: found.add(n)) for n in names
    ]
    label_logits(base, batches()[0])
    for handle in handles:
        handle.remove()
    return found


def model_row(kind: str) -> dict[str, Any]:
    """One type of model."""
    try:
        base = small(kind)
        linears = {
            name
            for name, module in base.named_modules()
            if type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        }
        head = base.get_output_embeddings()  # type: ignore[operator]
        linears = {n for n in linears if base.get_submodule(n) is not head and "router" not in n}
        linears = used(base.eval(), linears)
        model = adapted(base, LoraConfig(r=2, target_modules=sorted(linears)))
        plain(model.eval(), batches()[0])
    except Exception as error:
        return {"result": "not built", "said": f"{type(error).__name__}: {error}".splitlines()[0]}
    return judge(model)


def llama() -> nn.Module:
    """The base of all adapters."""
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if hasattr(LlamaConfig(), name)}
    sizes["attention_bias"] = True
    return LlamaForCausalLM(LlamaConfig(**sizes))


LINEARS = ["q_proj", "v_proj", "up_proj"]
LORA: dict[str, dict[str, Any]] = {
    "lora": {}, "rslora": {"use_rslora": True}, "ranks": {"rank_pattern": {"q_proj": 5}},
    "alphas": {"alpha_pattern": {"q_proj": 7}}, "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"}, "gaussian": {"init_lora_weights": "gaussian"},
    "dropout": {"lora_dropout": 0.5}, "layers": {"layers_to_transform": [1]},
    "replicated": {"layer_replication": [[0, 2], [1, 2]]},
    "dora": {"use_dora": True}, "lora_bias": {"lora_bias": True}, "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"}, "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3, 4]}, "qalora": {"use_qalora": True},
}  # fmt: skip


def adapter_rows() -> dict[str, dict[str, Any]]:
    """One row for each kind of adapter."""
    found: dict[str, dict[str, Any]] = {}
    made: dict[str, Any] = {}
    for name, options in LORA.items():
        made[name] = lambda options=options: LoraConfig(
            **{"r": 2, "target_modules": LINEARS, **options}
        )
    for name, kind in sorted(vars(peft).items()):
        if name.endswith("Config") and inspect.isclass(kind) and kind is not LoraConfig:
            made[name.removesuffix("Config")] = lambda kind=kind: _other(kind)
    for name, config in made.items():
        try:
            model = adapted(llama(), config())
        except Exception as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            found[name] = {"result": "not built", "said": said}
            continue
        found[name] = judge(model)
    return found


def _other(kind: Any) -> Any:
    fields = inspect.signature(kind).parameters
    options: dict[str, Any] = {"target_modules": LINEARS} if "target_modules" in fields else {}
    options |= {"task_type": "CAUSAL_LM"}
    for name, value in {"total_step": 10, "num_virtual_tokens": 2, "r": 2}.items():
        if name in fields and not (name == "r" and kind.__name__ in {"OFTConfig"}):
            options[name] = value
    return kind(**options)


def main() -> None:
    """Judge all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        if arguments.only is None or kind in arguments.only:
            rows[kind] = model_row(kind)
            print(kind, json.dumps(rows[kind])[:200], flush=True)
    adapters = adapter_rows() if arguments.only is None or "adapters" in arguments.only else {}
    for name, row in adapters.items():
        print(name, json.dumps(row)[:200], flush=True)
    counts = {
        part: {
            result: sum(row["result"] == result for row in table.values())
            for result in ("exact", "refused", "wrong", "not built")
        }
        for part, table in (("models", rows), ("adapters", adapters))
    }
    print(json.dumps(counts))
    if arguments.only is None:
        path = Path(__file__).parent / "results" / "zoo.json"
        path.write_text(
            json.dumps({"counts": counts, "models": rows, "adapters": adapters}, indent=1) + "\n"
        )
    if counts["models"]["wrong"] or counts["adapters"]["wrong"]:
        raise SystemExit("a row is wrong")


if __name__ == "__main__":
    main()
