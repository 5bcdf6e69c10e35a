"""Per-sample gradients: in memory, streamed, stored; and the gradients of metrics."""
