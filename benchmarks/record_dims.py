"""How many directions a store needs: by a number for every matrix, or by a share of their energy.

    python benchmarks/record_dims.py [--seeds 0 1 2] [--out out/record_once]

The demo's model and data. For each seed and choice of directions the trained adapter is recorded
in one scoring pass; the store's size is held against the float32 gradients', and the requests'
effect and scores against the full method's with every whole gradient. A choice that is in --out
already is kept. Writes benchmarks/results/record_dims.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from answers import answered, changes, demo_run, jobs_of, space_of
from fudlr.common.files import write_json
from fudlr.gradients.store import StoredRows
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.request import answer, score_samples
from fudlr.record import record_run
from fudlr.run import Run
from machine import describe
from record_once import REQUESTS, job_of
from scipy.stats import spearmanr

RESULT = Path(__file__).parent / "results" / "record_dims.json"
CHOICES = [
    *({"dims": dims, "energy": None} for dims in (8, 12, 16, 24, 31)),
    *({"dims": None, "energy": share} for share in (0.8, 0.85, 0.9, 0.95, 0.98)),
]


def name_of(choice: dict) -> str:
    return "-".join(f"{key}-{value}" for key, value in choice.items() if value is not None)


def full(run: Run, asked: dict) -> tuple[dict, dict, float]:
    """Changes and scores by every whole gradient, and the damping that goes with them."""
    evidence, scores, out = None, {}, {}
    for name, (job, gradients, before) in asked.items():
        if evidence is None:
            evidence = solvers(job, gather(job_of(run, REQUESTS[name], "memory")))
        scored = score_samples(evidence.space, gradients, job.objective, evidence.solve, job.config)
        found = answer(scored, job.config.budget, evidence.remove)
        scores[name] = scored.score
        out[name] = changes(run, job, found, before, name)
    return out, scores, evidence.damping


def of_choice(run: Run, choice: dict, asked: dict, whole: tuple) -> dict:
    """One store: size, what it kept, and its requests beside the full method's."""
    wanted, scores, damping = whole
    config = run.config.record.model_copy(update=choice)
    ids = torch.from_numpy(run.split.train.ids)
    with tempfile.TemporaryDirectory() as scratch:
        store = record_run(run, Path(scratch) / "store", config)
        projection = store.projection()
        space = space_of(StoredRows(store, ids), projection)
        facts = {
            "dim": store.dim,
            "of_gradients": store.bytes / (4 * store.n * run.engine.d),
            "kept": projection.kept,
            "audit": store.audit(),
        }
    directions = {b.name: b.sketch_shape[0] for b in projection.blocks}
    requests = {}
    for name, (job, gradients, before) in asked.items():
        found = answered(job, space, gradients, damping)
        mine = changes(run, job, found, before, name)
        requests[name] = {
            **mine,
            "spearman": float(spearmanr(found.scored.score, scores[name]).statistic),
            "effect": mine["measured"] / wanted[name]["measured"],
        }
    return {**choice, **facts, "directions": directions, "requests": requests}


def of_seed(seed: int, out: Path) -> dict:
    """All choices of one seed."""
    paths = {name_of(choice): out / f"dims-{seed}-{name_of(choice)}.json" for choice in CHOICES}
    reference = out / f"dims-{seed}-full.json"
    if not all(path.exists() for path in (*paths.values(), reference)):
        run = demo_run(seed, out)
        asked = jobs_of(run, REQUESTS)
        whole = full(run, asked)
        write_json(reference, whole[0])
        for choice in CHOICES:
            if not paths[name_of(choice)].exists():
                write_json(paths[name_of(choice)], of_choice(run, choice, asked, whole))
    return {
        "seed": seed,
        "full": json.loads(reference.read_text(encoding="utf-8")),
        "choices": [json.loads(path.read_text(encoding="utf-8")) for path in paths.values()],
    }


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/record_once"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [of_seed(seed, arguments.out) for seed in arguments.seeds]
    record = {
        "command": f"python benchmarks/record_dims.py --seeds "
        f"{' '.join(map(str, arguments.seeds))}",
        "machine": describe(),
        "seeds": seeds,
    }
    write_json(RESULT, record)
    for seed in seeds:
        for row in seed["choices"]:
            effects = " ".join(f"{each['effect']:.3f}" for each in row["requests"].values())
            audit = row["audit"]
            print(
                f"seed {seed['seed']} {name_of({k: row[k] for k in ('dims', 'energy')}):12} "
                f"p {row['dim']:5} size {row['of_gradients']:.3f} kept {row['kept']:.3f} "
                f"energy {audit['energy']:.3f} influences {audit['influences']:.3f} | {effects}"
            )


if __name__ == "__main__":
    main()
