"""Which way a pass went, and why: for people, and for summaries."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Report:
    """What ran in the last pass of an engine; `str()` says it in a sentence.

    Attributes:
        call: What was asked: first order, vjp, hvp, ggn_vp, Taylor gradient.
        decoder_layers: How many decoder layers were looked at.
        fused_layers: How many of them ran as fused layers: all, or none.
        single: The LoRA layers that ran by themselves, base and adapter as one step.
        own_code: Those that ran the model's own code, each with the reason.
        why: Why decoder layers, or some of their calls, were not fused.
    """

    call: str = ""
    decoder_layers: int = 0
    fused_layers: int = 0
    single: tuple[str, ...] = ()
    own_code: dict[str, str] = field(default_factory=dict)
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.call:
            return "No pass has run yet."
        parts = [f"{self.fused_layers} of {self.decoder_layers} decoder layers fused"]
        if self.why:
            parts[0] += f" ({'; '.join(self.why)})"
        if self.single:
            parts.append(f"{len(self.single)} LoRA layers by themselves ({_some(self.single)})")
        for reason in dict.fromkeys(self.own_code.values()):
            names = tuple(name for name, each in self.own_code.items() if each == reason)
            parts.append(f"{len(names)} by the model's own code, since {reason} ({_some(names)})")
        return f"{self.call}: {'; '.join(parts)}."


def _some(names: tuple[str, ...]) -> str:
    more = ", …" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
