"""What an error in parameters does to the figures of the real run: along straight ways of adapters.

    python benchmarks/llm_path.py [--out out/llm] [--small]

After `make llm` (and its stage `again-arp`, whose replay is then taken): the figures on the
straight way from the trained adapter to the retrained one, and on that from the retrained one to
the replay's. An update is held to retraining's change of a figure, to 30%. The ways say how near to
retraining an adapter has to be for that, whatever made it: where a figure jumps about on the way,
it is its own ill condition that decides, and not how the samples were taken out.
"""

from pathlib import Path

from fudlr.common.files import write_json
from fudlr.common.progress import track
from fudlr.evaluation import make_prompts
from fudlr.metrics import evaluate
from llm_work import Work, given_work, made_again
from machine import describe
from safetensors.torch import load_file
from torch import Tensor

SHARES = {"retrained": (0.5, 0.8), "replay": (0.1, 0.25, 0.5)}
"""Of the ways to the retrained adapter, and from there to the replay's; ends are added."""
METRICS = ("arp", "arp_soft", "aplt", "gini", "test_loss")


def main(arguments: list[str] | None = None) -> None:
    work, ending = given_work(__doc__.splitlines()[0], arguments)
    found = {
        "command": "python benchmarks/llm_path.py" + (" --small" if work.small else ""),
        "users": len(work.loaded.split.test),
        **measured(work),
        "machine": describe(),
    }
    path = work.out / f"llm_path{ending}.json"
    write_json(path, found)
    print(f"{path} is written; benchmarks/results/ keeps the real run's")


def replay(work: Work) -> Path:
    """The replay's adapter, as it is now where that was made."""
    return work.out / "arp" / ("again/adapter" if made_again("arp")(work) else "adapter")


def measured(work: Work) -> dict:
    """Every adapter on the ways: where it is, and its figures."""
    trained, retrained, ours = (
        work.loaded.engine.flatten(load_file(folder / "adapter_model.safetensors"))
        for folder in (work.run / "adapter", work.out / "arp" / "retrained", replay(work))
    )
    ways = {"retrained": (trained, retrained), "replay": (retrained, ours)}
    points = [(name, share) for name, shares in SHARES.items() for share in (0.0, *shares, 1.0)]
    truth = retrained - trained
    found = []
    for name, share in track(points, description="adapters on the ways"):
        start, end = ways[name]
        theta = end if share == 1 else start + share * (end - start)  # to the last bit: kept
        change = theta - trained
        cosine = change @ truth / (change.norm() * truth.norm()).clamp(min=1e-30)
        found.append({
            "way": name,
            "share": share,
            "error": float((theta - retrained).norm() / truth.norm()),
            "cosine": float(cosine) if change.any() else None,
            "figures": figures(work, theta),
        })  # fmt: skip
    return {"points": found}


def figures(work: Work, theta: Tensor) -> dict[str, float]:
    """The figures of the test users; kept in the run's folder, so that none is measured twice."""
    run = work.loaded
    run.engine.load(theta)
    test = make_prompts(run.split, run.split.test, run.config.data)
    scores, losses = run.recommender.evaluate(test.samples, run.config.debias.batch)
    every = {**evaluate(scores, test.side), "test_loss": float(losses.mean())}
    return {name: every[name] for name in METRICS}


if __name__ == "__main__":
    main()
