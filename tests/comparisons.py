"""Comparisons as `report/` reads them, made up: accuracies follow from predictions, the rest is plausible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median, stdev

import numpy

WORDS = ["a", "the", "film", "plot", "cast", "warm", "dull", "funny", "charming", "never", "quite", "it"]
SIX = {  # label: method, what differs, trainable parameters, share of right answers
    "none": ("none", {}, 0, 0.5),
    "head": ("head", {}, 512, 0.75),
    "full": ("full", {}, 5_289_984, 0.87),
    "lora": ("lora", {}, 16_896, 0.86),
    "prelayer": ("prelayer", {}, 2_130_432, 0.84),
    "prefix": ("prefix", {}, 15_872, 0.8),
}
RANKS = {
    f"lora, rank {rank}": ("lora", {"rank": rank}, 4096 * rank + 512, 0.8 + 0.02 * i)
    for i, rank in enumerate((1, 4, 16, 64))
}
RATES = {
    f"{method}, lr {lr:g}": (method, {"lr": lr}, count, share + (i % 2) / 20)
    for method, count, share in (("full", 5_289_984, 0.8), ("lora", 16_896, 0.78))
    for i, lr in enumerate((2e-4, 6e-4, 2e-3))
}
PLACE = {
    "device": "AMD EPYC",
    "threads": 2,
    "system": "Linux",
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "numpy": "2.4.6",
}


def a_comparison(
    variants: dict[str, tuple[str, dict, int, float]] = SIX,
    *,
    datasets: Sequence[str] = ("sst2",),
    seeds: Sequence[int] = (0, 1, 2),
    names: Sequence[str] = ("negative", "positive"),
    sentences: int = 60,
    texts: Sequence[str] | bool = True,
    failed: dict[tuple[str, int], str] | None = None,
    planned: Sequence[tuple[str, int]] = (),
    accounted: bool = True,
    margin: float | None = None,
    labels: Sequence[int] | None = None,
) -> dict:
    """`failed` maps (label, seed) to an error, `planned` lists those not yet run, on every dataset."""
    draw = numpy.random.default_rng(0)
    n = len(labels) if labels is not None else sentences
    made = []
    for name in datasets:
        truth = list(labels) if labels is not None else draw.integers(0, len(names), n).tolist()
        said = [" ".join(draw.choice(WORDS, draw.integers(3, 14))) for _ in truth] if texts is True else texts
        hard = draw.normal(size=n)
        found = [
            _variant(draw, label, row, name, truth, hard, names, seeds, failed or {}, planned, accounted)
            for label, row in variants.items()
        ]
        made.append(_dataset(name, names, truth, said or None, found))
    runs = [run for dataset in made for variant in dataset["variants"] for run in variant["runs"]]
    return {
        "record": 1,
        "kind": "comparison",
        "command": "python run.py compare --seeds " + " ".join(map(str, seeds)),
        "date": "2026-11-25",
        "code": {"version": "0.3.0", "digest": "0123456789abcdef" * 4},
        "environment": PLACE,
        "model": "mini-gpt2 (bundled)",
        "reference": list(variants)[-1] if len(variants) < 3 else list(variants)[2],
        "margin": margin,
        "seeds": list(seeds),
        "planned": len(runs),
        "done": sum(run["status"] == "done" for run in runs),
        "failed": sum(run["status"] == "failed" for run in runs),
        "stopped": "interrupted" if planned else None,
        "settings": {
            "model": "bundled",
            "epochs": 2,
            "batch_size": 16,
            "precision": "bf16",
            "recipe": "tuned",
        },
        "datasets": made,
    }


def _variant(draw, label, row, dataset, truth, hard, names, seeds, failed, planned, accounted) -> dict:
    method, differs, trainable, share = row
    lr = differs.get("lr", 1e-3) if trainable else None
    runs = []
    for seed in seeds:
        if (label, seed) in planned:
            runs.append({"seed": seed, "status": "planned", "error": None})
            continue
        if (label, seed) in failed:
            run = {"seed": seed, "status": "failed", "error": failed[label, seed], "load_average": [1.0, 1.1]}
            runs.append(run)
            continue
        run = {"seed": seed, "status": "done", "error": None, "lr": lr, "losses": [], "validation": []}
        run |= {"train_seconds": 0.0, "sentences_per_second": None, "load_average": None}
        runs.append(run)
        skill = 1.6 * math.sqrt(2) * _probit(share)
        right = hard + draw.normal(size=len(truth)) * 0.9 < skill / 1.5
        wrong = (numpy.array(truth) + draw.integers(1, len(names), len(truth))) % len(names)
        run["predictions"] = numpy.where(right, truth, wrong).tolist()
        run["accuracy"] = 100 * float(right.mean())
        run["interval"] = _wilson(int(right.sum()), len(truth))
        run["f1"] = run["accuracy"] + float(draw.normal())
        run["peak_bytes"] = int(1.0e9 + trainable * 120 + draw.integers(5_000_000))
        if trainable:
            run["train_seconds"] = 80 + 40 * math.log10(trainable) + float(draw.normal() * 4)
            run["sentences_per_second"] = 134_698 / run["train_seconds"]
            run["load_average"] = [round(1.0 + float(draw.random()) / 2, 2) for _ in range(2)]
            steps = range(40, 8001, 40)
            run["losses"] = [[s, 0.35 + 0.35 * math.exp(-s / 900) + float(draw.normal()) / 60] for s in steps]
            run["validation"] = [
                [s, 0.4, run["accuracy"] - 12 * math.exp(-s / 1500) + float(draw.normal()) / 4]
                for s in range(1000, 8001, 1000)
            ]
    done = [run for run in runs if run["status"] == "done"]
    times = [run["train_seconds"] for run in done if run["train_seconds"]]
    held = {"weights": 21_159_936, "gradients": 4 * trainable, "moments": 8 * trainable}
    total = 5_289_984 + (trainable if method in ("lora", "prefix") else 0)
    counts = {
        "trainable_parameters": trainable,
        "adapter_parameters": max(0, trainable - 512),
        "head_parameters": min(512, trainable),
        "total_parameters": total,
        "f1_of": names[1] if len(names) == 2 else "mean of all classes",
        "memory_kind": "resident",
    }
    return {
        "label": label,
        "method": method,
        "differs": differs,
        "config": {"method": method, "rank": 4, "alpha": 16, "lr": None, **differs, "dataset": dataset},
        "planned": len(seeds),
        "done": len(done),
        "failed": sum(run["status"] == "failed" for run in runs),
        **(counts if done else dict.fromkeys(counts)),
        "accuracy": _mean(done) if done else None,
        "f1": {"mean": mean(r["f1"] for r in done), "sd": _sd([r["f1"] for r in done])} if done else None,
        "seconds": {"median": median(times), "min": min(times), "max": max(times)} if times else None,
        "phase_seconds": _phases(median(times)) if times and accounted else None,
        "peak_bytes": max(run["peak_bytes"] for run in done) if done else None,
        "accounted": {**held, "activations": 42_000_000} if accounted and trainable and done else None,
        "runs": runs,
    }


def _dataset(name, names, truth, texts, variants) -> dict:
    reference = variants[-1 if len(variants) < 3 else 2]
    others = [v for v in variants if v is not reference and v["done"] and reference["done"]]
    counts = [truth.count(i) for i in range(len(names))]
    commonest = max(range(len(names)), key=counts.__getitem__)
    found = [_against(variant, reference) for variant in others]
    return {
        "name": name,
        "validation_name": f"{name} (dev)",
        "label_names": list(names),
        "labels": truth,
        "texts": texts,
        "train_sentences": 67_349,
        "baseline": {"label": names[commonest], "accuracy": 100 * counts[commonest] / len(truth)}
        if any(variant["done"] for variant in variants)
        else None,
        "headline": "; ".join(one["sentence"] for one in found[:2]) or "only one variant was run",
        "variants": variants,
        "comparisons": found,
    }


def _against(a: dict, b: dict) -> dict:
    one = {"a": a["label"], "b": b["label"]}
    if a["done"] < 2 or b["done"] < 2:
        numbers = ("difference", "interval", "standard_error", "p", "p_holm", "detectable", "bootstrap")
        sentence = f"{a['label']} ? {b['label']}: too few seeds"
        advice = "run at least 2 seeds of each"
        return (
            one
            | dict.fromkeys(numbers)
            | {"verdict": "too few seeds", "sentence": sentence, "advice": advice}
        )
    difference = a["accuracy"]["mean"] - b["accuracy"]["mean"]
    error = math.hypot(a["accuracy"]["standard_error"], b["accuracy"]["standard_error"]) / 2
    low, high = difference - 2 * error, difference + 2 * error
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error else 1.0
    verdict = "better" if low > 0 else "worse" if high < 0 else "not shown"
    sign = {"better": ">", "worse": "<", "not shown": "~"}[verdict]
    told = (
        f"by {abs(difference):.1f} points ({min(abs(low), abs(high)):.1f} to {max(abs(low), abs(high)):.1f})"
    )
    if verdict == "not shown":
        told = f"no difference shown, these runs tell {2.8 * error:.1f} points apart"
        sign, told = "~", told
    colon = ":" if verdict == "not shown" else ""
    return {
        **one,
        "difference": difference,
        "interval": [low, high],
        "standard_error": error,
        "p": p,
        "p_holm": min(1.0, 5 * p),
        "detectable": 2.8 * error,
        "bootstrap": [low - 0.1, high + 0.1],
        "verdict": verdict,
        "sentence": f"{a['label']} {sign} {b['label']}{colon} {told}",
        "advice": "about 3,400 sentences would tell them apart" if verdict == "not shown" else "",
    }


def _mean(done: list[dict]) -> dict:
    values = [run["accuracy"] for run in done]
    if len(values) == 1:
        return {
            "mean": values[0],
            "sd": None,
            "interval": done[0]["interval"],
            "kind": "wilson",
            "standard_error": None,
        }
    sentences = len(done[0]["predictions"])
    error = math.sqrt(mean(values) * (100 - mean(values)) / sentences + stdev(values) ** 2 / len(values))
    low, high = mean(values) - 2 * error, min(100.0, mean(values) + 2 * error)
    return {
        "mean": mean(values),
        "sd": stdev(values),
        "interval": [low, high],
        "kind": "crossed",
        "standard_error": error,
    }


def _phases(seconds: float) -> dict[str, float]:
    shares = {"data": 0.03, "forward": 0.45, "backward": 0.4, "optimizer": 0.12}
    return {phase: seconds * share for phase, share in shares.items()}


def _sd(values: list[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _wilson(right: int, n: int) -> list[float]:
    z, p = 1.96, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [100 * (middle - half) / (1 + z * z / n), 100 * (middle + half) / (1 + z * z / n)]


def _probit(p: float) -> float:
    low, high = -6.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + math.erf(middle / math.sqrt(2))) / 2 < p else (low, middle)
    return low


def some_rates() -> dict:
    """A tuning of two methods: losses along a parabola in log10 of the rate; LoRA's largest rate diverged."""
    variants = []
    for method, vertex, curvature in (("full", 3e-4, 0.12), ("lora", 4e-3, 0.09)):
        rates = [vertex * 10 ** (step / 2) for step in (-2.2, -1.2, -0.2, 0.8, 1.8)]
        points = []
        for i, lr in enumerate(rates):
            mean_loss = 0.31 + curvature * math.log10(lr / vertex) ** 2
            losses = [mean_loss + x for x in ((-0.004, 0.0, 0.004) if 0 < i < 4 else (0.0,))]
            runs = [
                {"seed": 100 + s, "loss": x, "accuracy": 85.0, "error": None} for s, x in enumerate(losses)
            ]
            points.append({"lr": lr, "runs": runs, "mean_loss": mean_loss})
        if method == "lora":
            points[-1]["runs"] = [{"seed": 100, "loss": None, "accuracy": None, "error": "the loss is nan"}]
            points[-1]["mean_loss"] = None
        about = {"label": method, "method": method, "settings": {}, "chosen": rates[2]}
        variants.append(
            {
                **about,
                "parabola": {"vertex": vertex, "curvature": 2 * curvature, "loss": 0.31},
                "points": points,
            }
        )
    return {
        "record": 1,
        "kind": "rates",
        "command": "python run.py tune",
        "date": "2026-11-25",
        "code": {"version": "0.3.0", "digest": "0" * 64},
        "environment": PLACE,
        "model": "mini-gpt2 (bundled)",
        "dataset": "sst2",
        "stopped": None,
        "held_out": {"sentences": 1000, "train_sentences": 60_000},
        "budget": "5 rates, the best 3 with 2 more seeds: 11 runs a method",
        "variants": variants,
    }
