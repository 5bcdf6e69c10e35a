#!/usr/bin/env bash
# A model that transformers' Trainer trained with bf16=True computes in bfloat16 ever after.
#
# Expected: mixed precision ends with the training; the model's own parameters are float32 and so
# are its outputs. Seen: accelerate leaves its wrapper in the model's `forward`. model(...) after
# trainer.train() still runs under autocast and casts the outputs back, so that the dtype says
# float32 while the values have bfloat16's error, also in eval mode, without the trainer, and in
# everything that calls the model later (evaluation, gradients, influence). Calling the parts
# (model.model, then model.lm_head) gives float32's values. The learning rate here is 0, so that no
# parameter changes. accelerate's extract_model_from_parallel(..., keep_fp32_wrapper=False) undoes it.
#
# Exits non-zero where this changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cat >"$work/run.py" <<'PY'
import tempfile

import accelerate
import torch
import transformers
from accelerate.utils import extract_model_from_parallel
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
ids = torch.arange(8)[None]


@torch.no_grad()
def logits():
    return model(input_ids=ids).logits


before, weights = logits(), {k: v.clone() for k, v in model.state_dict().items()}
arguments = TrainingArguments(
    tempfile.mkdtemp(), bf16=True, use_cpu=True, max_steps=1, learning_rate=0.0,
    report_to=[], save_strategy="no", disable_tqdm=True,
)
rows = [{"input_ids": ids[0], "labels": ids[0]}] * 4
Trainer(model=model, args=arguments, train_dataset=rows).train()
model.eval()
after = logits()
with torch.no_grad():
    parts = model.lm_head(model.model(input_ids=ids).last_hidden_state)
same = all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
error, of_parts = (float((each - before).abs().max()) for each in (after, parts))
extract_model_from_parallel(model, keep_fp32_wrapper=False)
undone = float((logits() - before).abs().max())
print("transformers", transformers.__version__, " accelerate", accelerate.__version__)
print("parameters unchanged:", same, " dtype of the outputs:", after.dtype)
print(f"largest change of a logit: {error:.1e}; by parts: {of_parts:.1e}; unwrapped: {undone:.1e}")
assert same and after.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
assert error > 1e-4 and of_parts == 0 and undone == 0
PY
OMP_NUM_THREADS=1 "$work/venv/bin/python" "$work/run.py" 2>&1 | grep -v "train_runtime"
