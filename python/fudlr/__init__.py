"""Debias LoRA-tuned LLM recommenders: influence, mask, closed-form update, proof."""
