"""The pages give the figures that were measured, one for one thing, and name only what is there.

    python tests/test_pages.py        # after measuring anew: writes the figures into the pages

Two kinds of figure come from benchmarks/results: what stands between `<!-- from FILE.json: KIND -->` and
`<!-- end -->`, by KIND's function below, and single ones: `57 %<!-- FILE.json: path.in.results:.0% -->`.
Memory by arithmetic and dtypes are computed anew.
"""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from math import log
from pathlib import Path
from statistics import mean

import pytest
import torch
from conftest import tiny_config
from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.base.precisions import BASE_PRECISIONS
from lora_from_scratch.base.quantised import quantised_layers
from lora_from_scratch.cli.flags import COMMANDS, command_parser, run_parser
from lora_from_scratch.compare.accounting import account_model
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16
from lora_from_scratch.lens.dtypes import dtypes_of_a_step
from lora_from_scratch.methods import METHODS
from lora_from_scratch.methods.interface import NARROW
from lora_from_scratch.report import lens_view, numbers
from lora_from_scratch.report.compared import f1_column
from lora_from_scratch.report.lens_view import BESIDE, KEPT
from lora_from_scratch.train.measure import count_parameters, tensor_bytes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "lora_from_scratch")  # that the paths on a page start from
PARTS = ("weights", "gradients", "moments", "activations")
UNITS = {"T": 1e12, "G": 1e9}  # at the end of a format
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
BLOCK = re.compile(r"(<!-- from (\S+): (\w+) -->\n)(.*?)(\n<!-- end -->)", re.S)
FIGURE = re.compile(r"([-+\d.,]*\d(?: %)?)(<!-- (\S+\.json): ([^:]+):(\S+) -->)")
MEASURED = re.compile(r"\d[\d.,]* (?:%|times|points|ms|us|s|GB|[TG]FLOP(?:/s)?)(?!\w)")
# Other authors' figures, on the one page that quotes them: for GPT-2 small,
QUOTED = {"published-table.md": {"83.26", "83.41", "86.93", "87.42", "83.14", "83.72", "88.30", "86.24"}}
QUOTED["published-table.md"] |= {"94.8", "95.1", "96.4", "96.2"}  # the LoRA paper's, for RoBERTa
QUOTED["lora-at-its-best.md"] = {"86.93"}  # the published LoRA's, on GPT-2 small


def table(*rows: list[str]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def compared(file: dict) -> str:
    """What `run.py compare` found: a row a variant, the verdict, and where it was measured."""
    (dataset,) = file["datasets"]
    columns = ["accuracy (%)", "95 % interval", f1_column(dataset), "trainable", "training (s)", "peak (GB)"]
    rows = [["method", *columns]]
    for one in dataset["variants"]:
        accuracy, f1, seconds = one["accuracy"], one["f1"], one["seconds"] and one["seconds"]["median"]
        means = [
            f"{m['mean']:.2f}" + ("" if m["sd"] is None else f" (SD {m['sd']:.2f})") for m in (accuracy, f1)
        ]
        cells = [means[0], numbers.between(accuracy["interval"]), means[1]]
        cells += [
            f"{one['trainable_parameters']:,}",
            f"{seconds:.0f}" if seconds else "-",
        ]
        rows.append([one["label"], *cells, f"{one['peak_bytes'] / 1e9:.2f}"])
    return f"{table(*rows)}\n\n{dataset['headline']}\n{what_ran(file)}"


def none_left_out(_: None) -> str:
    """Of each comparison that is kept: how many runs were planned, done and failed, and the worst trained."""
    rows = [["comparison", "seeds", "runs planned", "done", "failed"]]
    rows[0] += ["lowest accuracy of a run that trained (%)", "lowest F1 (%)"]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/results.json")):
        file = json.loads(path.read_text(encoding="utf-8"))
        variants = [one for dataset in file["datasets"] for one in dataset["variants"]]
        runs = [run for one in variants if one["trainable_parameters"] for run in one["runs"]]
        link = f"[{path.parent.name}](../benchmarks/results/{path.parent.name}/results.json)"
        counts = (str(file[key]) for key in ("planned", "done", "failed"))
        lowest = (f"{min(run[key] for run in runs):.1f}" for key in ("accuracy", "f1"))
        rows.append([link, str(len(file["seeds"])), *counts, *lowest])
    return table(*rows)


def what_ran(file: dict) -> str:
    place = file["environment"]
    where = f"{file['done']} runs on {place['device']}, {place['threads']} threads, torch {place['torch']}"
    return f"{where}:\n`{file['command']}`"


def ranks(file: dict) -> str:
    """Accuracy over the rank, and how much learns, beside each other for the places of LoRA."""
    (dataset,) = file["datasets"]
    at = {(one["config"]["rank"], *one["config"]["target_modules"]): one for one in dataset["variants"]}
    places = list(dict.fromkeys(place for _, place in at))
    columns = ("accuracy (%)", "95 % interval", "trainable")
    rows = [["rank", *(f"`{place}`: {column}" for place in places for column in columns)]]
    for rank in sorted({rank for rank, _ in at}):
        rows.append([str(rank)])
        for one in (at[rank, place] for place in places):
            mean = f"{one['accuracy']['mean']:.2f} (SD {one['accuracy']['sd']:.2f})"
            interval, count = numbers.between(one["accuracy"]["interval"]), one["trainable_parameters"]
            rows[-1] += [mean, interval, f"{count:,}"]
    return f"{table(*rows)}\n\n{what_ran(file)}"


def verdicts(file: dict) -> str:
    (dataset,) = file["datasets"]
    return "\n".join(f"- {one['sentence']}" for one in dataset["comparisons"])


def differences(file: dict) -> str:
    """Each variant beside the reference: the difference, its interval, and what these runs tell apart."""
    (dataset,) = file["datasets"]
    rows = [["method", f"minus {dataset['comparisons'][0]['b']} (points)", "95 % interval", "p", "p (Holm)"]]
    rows[0].append("told apart from (points)")
    for one in dataset["comparisons"]:
        cells = [numbers.points(one["difference"]), numbers.between(one["interval"])]
        cells += [f"{one[key]:.2f}" for key in ("p", "p_holm")]
        rows.append([f"`{one['a']}`", *cells, f"{one['detectable']:.1f}"])
    return table(*rows)


def missed_rows() -> str:
    """The rows of the sentences that every method gets wrong, on the page of the main comparison."""
    page = ROOT / "benchmarks" / "results" / "sst2-methods" / "report.html"
    lists = re.findall(r'id="data1-missed(?:-rest)?">(.*?)</table>', page.read_text(encoding="utf-8"), re.S)
    return "".join(lists)


def missed(_: None) -> str:
    """What no trained method gets right in most of its runs, by the page of the comparison."""
    found = re.findall(r'data-title="is"><bdi>(\w+)</bdi>(.*?)</tr>', missed_rows())
    never = [
        not any(map(int, re.findall(r'data-title="(?!none")[^"]+">(\d+)/', cells))) for _, cells in found
    ]
    counts = [sum(label == one for label, _ in found) for one in "01"]
    told = "{} of 872 sentences, {} of them in every run; {} are negative and {} positive"
    return told.format(len(found), sum(never), *counts)


def shares(file: dict) -> str:
    """What each method has above doing nothing, and which part that is of what full fine-tuning has."""
    (dataset,) = file["datasets"]
    means = {one["label"]: one["accuracy"]["mean"] for one in dataset["variants"]}
    gains = {label: value - means["none"] for label, value in means.items() if label != "none"}
    rows = [["method", "above none (points)", "of full's", "above head (points)"]]
    for label, gain in gains.items():
        beyond = gain - gains["head"]
        rows.append([f"`{label}`", f"{gain:.1f}", f"{100 * gain / gains['full']:.0f} %", f"{beyond:.1f}"])
    return table(*rows)


def two_rates(file: dict) -> str:
    """Each method at the rate that is one for all and at its own, and what may be said of the difference."""
    (dataset,) = file["datasets"]
    by_label = {one["label"]: one for one in dataset["variants"]}
    rows = [["method", "at 0.0002: accuracy (%)", "tuned rate", "accuracy (%)", "difference"]]
    rows[0].append("to show one as large")
    for one in dataset["comparisons"]:
        own, common = by_label[one["a"]], by_label[one["b"]]
        if own["method"] == common["method"]:
            means = (f"{variant['accuracy']['mean']:.2f}" for variant in (common, own))
            at_common, at_own = means
            name, rate = f"`{own['method']}`", f"{own['config']['lr']:g}"
            needed = one["advice"].partition(", as seen here, takes ")[2] or "-"
            rows.append([name, at_common, rate, at_own, one["sentence"], needed])
    return f"{table(*rows)}\n\n`{file['command']}`"


def orders(file: dict) -> str:
    """The methods by mean accuracy, at the rate that is one for all and each at its own."""
    (dataset,) = file["datasets"]
    variants = [one for one in dataset["variants"] if one["method"] != "none"]
    common = [one for one in variants if one["config"]["lr"] == 2e-4]
    rows = []
    for told, ones in (("at 0.0002", common), ("each at its own", [v for v in variants if v not in common])):
        ranked = sorted(ones, key=lambda one: -one["accuracy"]["mean"])
        rows.append(f"- {told}: " + ", ".join(f"{v['method']} {v['accuracy']['mean']:.2f}" for v in ranked))
    return "\n".join(rows)


def flat_ranges(file: dict) -> str:
    """From which rate to which one accuracy on the held-out sentences stays within a point of its best."""
    rows = [["method", "best accuracy (%)", "at", "within one point of it", "rates tried"]]
    for label, one in tuned_variants(file):
        accuracy = {p["lr"]: mean(run["accuracy"] for run in p["runs"]) for p in one["points"]}
        best = max(accuracy, key=accuracy.__getitem__)
        near = [rate for rate, value in accuracy.items() if value >= accuracy[best] - 1]
        single = {p["lr"] for p in one["points"] if len(p["runs"]) == 1}
        told = ", ".join(f"({rate:g})" if rate in single else f"{rate:g}" for rate in sorted(near))
        rows.append([label, f"{accuracy[best]:.1f}", f"{best:g}", told])
        rows[-1].append(f"{min(accuracy):g} to {max(accuracy):g}")
    return table(*rows)


def by_loss_and_accuracy(file: dict) -> str:
    """The rate that `run.py tune` chose, and the one by accuracy, of those that all seeds were run at."""
    rows = [["method", "rate by loss", "accuracy there (%)", "rate by accuracy", "accuracy there (%)"]]
    for label, one in tuned_variants(file):
        seeds = max(len(point["runs"]) for point in one["points"])
        whole = [point for point in one["points"] if len(point["runs"]) == seeds]
        accuracy = {point["lr"]: mean(run["accuracy"] for run in point["runs"]) for point in whole}
        best = max(accuracy, key=accuracy.__getitem__)
        cells = (f"{rate:g} | {accuracy[rate]:.1f}" for rate in (one["chosen"], best))
        rows.append([label, *cells])
    return table(*rows)


def near_defaults(file: dict) -> str:
    """What the rate nearest to a method's default reached, beside the one that `run.py tune` chose."""
    columns = ("nearest tried", "accuracy there (%)", "loss there (nats)", "chosen", "accuracy (%)", "loss")
    rows = [["method", "default", *columns]]
    for label, one in tuned_variants(file):
        default = METHODS[one["method"]].default_lr(NARROW - 1)
        points = {point["lr"]: point for point in one["points"]}
        cells = [label, f"{default:g}"]
        for rate in (min(points, key=lambda rate: abs(log(rate / default))), one["chosen"]):
            accuracy = mean(run["accuracy"] for run in points[rate]["runs"])
            cells += [f"{rate:g}", f"{accuracy:.1f}", f"{points[rate]['mean_loss']:.3f}"]
        rows.append(cells)
    return table(*rows)


def comparison(file: dict) -> str:
    rows = [["against", "theirs / ours, time", "range", "ours / theirs, memory", "ms a sentence, ours"]]
    for name, row in file["results"].items():
        times = "{:.2f} | {:.2f} to {:.2f}".format(row["time_ratio"], *row["time_ratio_range"])
        rows.append([f"`{name}`", times, f"{row['memory_ratio']:.2f}", f"{row['ours_ms_per_sentence']:.1f}"])
    return table(*rows)


def whole_job(file: dict) -> str:
    """Training for two epochs of SST-2 at the time of a sentence."""
    ours, theirs = (file["results"]["best"][f"{side}_ms_per_sentence"] for side in ("ours", "theirs"))
    minutes = [2 * 67_349 * ms / 60_000 for ms in (ours, theirs)]
    told = "two epochs of SST-2, {:,} sentences, take {:.0f} minutes at the time of `best`; {:.0f} by theirs"
    return told.format(2 * 67_349, *minutes)


def default_rates(_: None) -> str:
    """What each method learns at where --lr is not named."""
    rows = [["method", f"bases narrower than {NARROW}, such as the bundled", "others, such as GPT-2"]]
    for name, method in METHODS.items():
        if method.trains:
            rows.append([f"`{name}`", *(f"{method.default_lr(width):g}" for width in (NARROW - 1, NARROW))])
    return table(*rows)


def ways(_: None) -> str:
    """What learns of GPT-2 small by each method, and accuracy where it was compared."""
    measured = []
    for folder in ("sst2-methods", "sst2-family"):
        (dataset,) = load(f"{folder}/results.json")["datasets"]
        measured.append({one["method"]: one for one in dataset["variants"]})
    rows = [["method", "learns", "all of SST-2 (%)", "20,000 rows of it (%)"]]
    for name, method in METHODS.items():
        if method.trains:
            with torch.device("meta"):
                model = adapt(GPT2ForSequenceClassification(GPT2Config()), RunConfig(method=name))
            found = (by.get(name) for by in measured)
            means = (
                f"{one['accuracy']['mean']:.2f}{one['label'].removeprefix(name)}" if one else "-"
                for one in found
            )
            rows.append([f"`{name}`", f"{count_parameters(model).trainable:,}", *means])
    return table(*rows)


def rates(file: dict) -> str:
    rows = [["method", "learning rate: points below the best one"]]
    for name, by_rate in file["accuracy"].items():
        best = max(map(mean, by_rate.values()))
        cells = (f"{float(rate):g}: {best - mean(values):.1f}" for rate, values in by_rate.items())
        rows.append([f"`{name}`", ", ".join(cells)])
    return table(*rows)


def tuned(file: dict) -> str:
    """What `run.py tune` chose, and the mean loss at each rate; rates of one seed alone in brackets."""
    rows = [["method", "chosen", "the parabola's lowest point", "mean loss (nats) at each rate"]]
    for label, one in tuned_variants(file):
        losses = (
            ("{}: {:.3f}" if len(point["runs"]) > 1 else "({}: {:.3f})").format(
                f"{point['lr']:g}", point["mean_loss"]
            )
            for point in one["points"]
        )
        lowest = f"{one['parabola']['vertex']:.1e}" if one["parabola"] else "-"
        rows.append([label, f"{one['chosen']:g}", lowest, ", ".join(losses)])
    held_out, place = file["held_out"], file["environment"]
    (limit,) = {one["settings"]["limit_train"] for one in file["variants"]}
    others = (f"{limit:,} of the other " if limit else "") + f"{held_out['train_sentences']:,}"
    counts = f"{held_out['sentences']:,} sentences held out, {others} rows trained on"
    return f"{table(*rows)}\n\n{counts}; {place['device']}, torch {place['torch']}."


def tuned_variants(file: dict) -> list[tuple[str, dict]]:
    """With their names, in the order of the table of methods."""
    found = []
    for one in sorted(file["variants"], key=lambda one: list(METHODS).index(one["method"])):
        where = ", ".join(one["settings"].get("target_modules", []))
        found.append((f"`{one['label']}`{where and f' on {where}'}", one))
    return found


def contended(file: dict) -> str:
    """Sentences a second by how threads wait, alone and beside busy processes."""
    ((one),) = file["results"].values()
    speeds, own, pytorchs = one["median"], one["of_own_quiet"], one["of_pytorchs_quiet"]
    counts = list(next(iter(speeds.values())))
    rows = [["waiting", "quiet: sentences/s", "of PyTorch's own"]]
    rows[0] += [f"{count} busy beside: sentences/s, of the quiet ones" for count in counts[1:]]
    for name, by in speeds.items():
        beside = (f"{by[count]:.0f}, {own[name][count]:.2f}" for count in counts[1:])
        rows.append([name, f"{by['0']:.0f}", f"{pytorchs[name]['0']:.2f}", *beside])
    return f"{table(*rows)}\n\n`{file['command']}`"


def epochs(file: dict) -> str:
    """Accuracy by the number of epochs, a row a dataset; below it, where it was measured."""
    numbers = sorted({int(number) for row in file["results"] for number in row["accuracy"]})
    rows = [["dataset", "trained on", "measured on", *map(str, numbers)]]
    for row in file["results"]:
        found = (row["accuracy"].get(str(number)) for number in numbers)
        cells = [f"{mean(values):.1f}" if values else "-" for values in found]
        counts = (f"{row[f'{part}_sentences']:,}" for part in ("train", "validation"))
        rows.append([f"`{row['dataset']}`", *counts, *cells])
    place, seeds = file["environment"], " and ".join(map(str, file["seeds"]))
    where = f"{place['device']}, torch {place['torch']}, means of the seeds {seeds}"
    return f"{table(*rows)}\n\n{where}.\n`{file['command']}`"


def processes(file: dict) -> str:
    """Steps a second of one process of two threads and of two of one, and what arithmetic says of the two."""
    rows = [["method", "one process", "two", "one / two, time", "range", "ms a step of two", "foretold"]]
    rows[0] += ["MB sent a step", "a checkpoint (s)"]
    for name, row in file["results"].items():
        speeds, ms = row["steps_per_second"], row["milliseconds_of_a_step"]
        ratios = f"{row['one_over_two']:.2f}", "{:.2f} to {:.2f}".format(*row["one_over_two_range"])
        times = f"{ms['two']:.0f}", f"{ms['predicted_two']:.0f}"
        rest = f"{row['megabytes_sent_per_step']:.1f}", f"{row['checkpoint_seconds']:.2f}"
        rows.append([f"`{name}`", f"{speeds['one']:.2f}", f"{speeds['two']:.2f}", *ratios, *times, *rest])
    place = "{device}, {precision}, torch {torch}".format(**file["environment"], precision=file["precision"])
    return f"{table(*rows)}\n\n{place}.\n`{file['command']}`"


@cache
def accounted(base: str, method: str, tokens: int, *targets: str) -> dict[str, int]:
    """Bytes of a step on 16 sentences of so many tokens each, the masks as on a GPU."""
    config = GPT2Config() if base == "GPT-2 small" else GPT2Config.from_pretrained(BUNDLED_MODEL)
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(config)
    asked = RunConfig(method=method, **({"target_modules": targets} if targets else {}))
    return account_model(adapt(model, asked), 16, tokens, as_on_a_gpu=True)


def gib(size: int) -> str:
    return f"{size / 2**30:.3f}"


def memory(_: None) -> str:
    linear = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    rows = [["base", "method", *(f"{part} (GiB)" for part in (*PARTS, "activations at 16 x 12"))]]
    for base, methods in {
        "GPT-2 small": ("head", "prefix", "lora", "prelayer", "full"),
        "bundled": ("lora", "full"),
    }.items():
        for method in methods:
            for targets in ((), linear) if method == "lora" and base == "GPT-2 small" else ((),):
                long, short = (accounted(base, method, tokens, *targets) for tokens in (128, 12))
                name = f"`{method}`{', all linear layers' if targets else ''}"
                rows.append([base, name, *map(gib, [*long.values(), short["activations"]])])
    return table(*rows)


def relatives(_: None) -> str:
    """LoRA's relatives on GPT-2 small: what learns, and what is kept for the backward pass."""
    linear = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    rows = [["method", "gradients and moments (GiB)", "activations at 16 x 128 (GiB)"]]
    for method in ("lora", "lora-fa", "dora", "bitfit", "ia3"):
        for targets in ((), linear) if method in ("lora", "lora-fa") else ((),):
            sizes = accounted("GPT-2 small", method, 128, *targets)
            name = f"`{method}`{', all linear layers' if targets else ''}"
            rows.append([name, gib(sizes["gradients"] + sizes["moments"]), gib(sizes["activations"])])
    return table(*rows)


def published_memory(_: None) -> str:
    """Beside the figures that the published table's author gives: what stays, and the peak."""
    rows = [["method", "weights + gradients + moments (GiB)", "table", "with activations (GiB)"]]
    rows[0] += ["notebook's peak"]
    for method, (stays, peak) in {"full": ("1.89", "6.01"), "lora": ("0.49", "2.99")}.items():
        sizes = accounted("GPT-2 small", method, 128)
        whole = sum(sizes.values())
        rows.append([f"`{method}`", gib(whole - sizes["activations"]), stays, gib(whole), peak])
    return table(*rows)


@cache
def kept_in(precision: str, **size: int) -> tuple[int, int, int, int]:
    """Bytes of LoRA's step in bf16 on 16 x 64 tokens: matrices, all weights, what learns, activations."""
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(GPT2Config(pad_token_id=0, **size))
    model = keep_frozen_in_bf16(adapt(model, RunConfig(method="lora", base_precision=precision)))
    matrices = sum(tensor_bytes(layer.buffers()) for _, layer in quantised_layers(model))
    matrices = matrices or 4 * 12 * model.config.n_layer * model.config.n_embd**2  # in fp32
    sizes = account_model(model, 16, 64, torch.bfloat16, classify, as_on_a_gpu=True)
    return matrices, sizes["weights"], sizes["gradients"] + sizes["moments"], sizes["activations"]


def quantised(_: None) -> str:
    """GPT-2 small, and GPT-2 XL: of its 48 blocks three are counted, as each but the last adds the same."""
    rows = [["`--base-precision`", "small: matrices (MB)", "of fp32's", "XL: matrices (MB)"]]
    rows[0] += [
        f"{what} (GiB)" for what in ("a step of XL's: weights", "gradients and moments", "activations", "all")
    ]
    for precision in BASE_PRECISIONS:
        small = 12 * kept_in(precision, n_layer=1)[0]
        two, three = (kept_in(precision, n_embd=1600, n_head=25, n_layer=n) for n in (2, 3))
        matrices, *step = (a + 46 * (b - a) for a, b in zip(two, three, strict=True))
        share = small / (4 * 12 * 12 * 768**2)
        cells = f"{small / 1e6:.1f}", f"{share:.3f}", f"{matrices / 1e6:,.1f}", *map(gib, [*step, sum(step)])
        rows.append([f"`{precision}`", *cells])
    return table(*rows)


def dtypes(_: None) -> str:
    """Of every line of a step, by precision, plain and fast."""
    kinds = {f"{p}{', `--plain`' * plain}": (p, plain) for p in ("fp32", "bf16") for plain in (True, False)}
    found = []
    for kind in kinds.values():
        torch.manual_seed(0)
        model = adapt(GPT2ForSequenceClassification(tiny_config()), RunConfig(method="lora"))
        found.append(dtypes_of_a_step(model, *kind))
    rows = [[*line, *(lines[line] for lines in found)] for line in found[0]]
    return table(["moment", "tensor", *kinds], *rows)


def load(name: str) -> dict | None:
    if not name.endswith(".json"):
        return None  # computed anew
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def figure(match: re.Match[str]) -> str:
    value, spec = load(match[3]), match[5]
    value = value.get("results", value)
    for part in re.split(r"\.(?!py\b)", match[4]):  # the dot of run.py parts nothing
        value = value[int(part) if isinstance(value, list) else part]
    if unit := UNITS.get(spec[-1]):
        return f"{value / unit:{spec[:-1]}f}" + match[2]
    return format(value, spec).replace("%", " %") + match[2]


def moments(file: dict) -> str:
    """What is resident at each moment of a run, and at most since the one before."""
    runs = file["results"]
    rows = [["until", *(f"{p}: {what} (GB)" for p in runs for what in ("resident", "peak"))]]
    for moment in next(iter(runs.values())):
        readings = [runs[precision][moment] for precision in runs]
        values = [one[key] for one in readings for key in ("resident_bytes", "peak_bytes")]
        rows.append([moment, *(f"{value / 1e9:.2f}" for value in values)])
    place = file["environment"]
    return f"{table(*rows)}\n\n{place['device']}, torch {place['torch']}.\n`{file['command']}`"


def peaks(file: dict) -> str:
    """Ours while training, by the length of sentences and by the model."""
    rows = [["LoRA in batches of 16", "peak while training (GB)"]]
    for sweep, told in (
        ("tokens a sentence", "GPT-2 small, sentences of {} tokens"),
        ("model", "GPT-2 {}, SST-2"),
    ):
        for one in file["results"]["sweeps"][sweep]:
            rows.append([told.format(one["point"]), f"{one['ours_peak_bytes'] / 1e9:.2f}"])
    return (
        f"{table(*rows)}\n\n{file['hardware']}, torch {file['torch']}, {file['date']}.\n`{file['command']}`"
    )


def coverage(file: dict) -> str:
    """How often the intervals of simulated comparisons held the truth, by seeds and their deviation."""
    rows = [["seeds", "SD over seeds (points)", "held the difference (%)", "false alarms (%)"]]
    for one in file["results"]["as_real_runs"]:
        cells = [str(one["seeds"]), f"{one['seed_deviation']:g}"]
        rows.append([*cells, f"{one['difference_held']:.1f}", f"{one['false_alarms']:.1f}"])
    return table(*rows)


def lens_layers(file: dict) -> str:
    """What `run.py inspect` found of each layer, as its page has it."""
    return table(list(lens_view.LAYERS), *map(list, lens_view.layer_rows(file["adapters"][0])))


def lens_parts(file: dict) -> str:
    """Accuracy with the first directions alone, and with the update turned down and up."""
    found = file["measured"]
    kept = table(list(KEPT), *map(list, lens_view.kept_rows(found)))
    scaled = table(["scale of \u0394W", *KEPT[2:]], *map(list, lens_view.scaled_rows(found)))
    return f"{kept}\n\n{scaled}"


def lens_beside(file: dict) -> str:
    """Each adapter, and how those beside the first lie to it."""
    tables = [table(list(BESIDE), *map(list, lens_view.beside_rows(file)))]
    for one in file["overlaps"]:
        titles = [f"with {one['label']}: layer", *lens_view.OVERLAPS[1:]]
        tables.append(table(titles, *map(list, lens_view.overlap_rows(one))))
    return "\n\n".join(tables)


def lens_thresholds(file: dict) -> str:
    """How many intruders there would be at other thresholds, by the cosines in the record."""
    thresholds, top = (0.3, 0.4, 0.5, 0.6, 0.7), file["top"]
    rows = [["adapter", "counted of", *(f"below {threshold}" for threshold in thresholds)]]
    for one in file["adapters"]:
        cosines = [cosine for layer in one["layers"] for cosine in layer["cosines"][:top]]
        counts = (str(sum(cosine < threshold for cosine in cosines)) for threshold in thresholds)
        rows.append([one["label"], str(len(cosines)), *counts])
    return table(*rows)


def lens_ranks(file: dict) -> str:
    """What a large rank, a small one and another seed of the large one have in common, layer by layer."""
    large, small, _ = file["adapters"]
    of_small, of_seed = (lens_view.overlap_rows(one) for one in file["overlaps"])
    rows = [["layer", f"effective rank of {large['label']}"]]
    rows[0] += [f"amplified by {one['label']}" for one in (small, large)]
    rows[0] += [f"first with first: {one['label']}" for one in file["overlaps"]]
    rows[0] += [f"all of A with all of A: {file['overlaps'][1]['label']}"]
    layers = map(lens_view.layer_rows, (large, small))
    for big, little, beside, seed in zip(*layers, of_small, of_seed, strict=True):
        rows.append([big[0], big[4], little[8], big[8], beside[1], seed[1], seed[4]])
    return table(*rows)


def lens_amplified(file: dict) -> str:
    """The paper's table 7 of each LoRA of one seed: W0 along the update's, its own and random ones."""
    rows = [["layer", "adapter", "norm of \u0394W", "W0 along \u0394W's directions", "along its own first"]]
    rows[0] += ["along random ones", "\u0394W's over W0 along it", "W0 along it over random"]
    small, large = sorted(file["adapters"][:2], key=lambda one: one["directions"])
    for layer, other in zip(small["layers"], large["layers"], strict=True):
        for adapter, one in ((small, layer), (large, other)):
            found = one["amplification"]
            norms = (one["norm"], found["by_update"], found["by_base"], found["by_chance"])
            ratios = (found["factor"], found["by_update"] / found["by_chance"])
            cells = [*(f"{value:.2f}" for value in norms), *(f"{value:.1f}" for value in ratios)]
            rows.append([one["layer"], adapter["label"], *cells])
    return table(*rows)


def lens_qkv(file: dict) -> str:
    """The norm of the update in each block's q, k and v, and its effective rank, of each LoRA of one seed."""
    small, large = sorted(file["adapters"][:2], key=lambda one: one["directions"])
    columns = ("effective rank", "norm of \u0394W", *"qkv")
    rows = [["layer", *(f"{one['label']}: {column}" for one in (small, large) for column in columns)]]
    for layers in zip(small["layers"], large["layers"], strict=True):
        rows.append([layers[0]["layer"]])
        for one in layers:
            parts = (one["parts"][part]["norm"] for part in "qkv")
            rows[-1] += [f"{value:.2f}" for value in (one["effective_rank"], one["norm"], *parts)]
    return table(*rows)


def whole_base(file: dict) -> str:
    """Adapters of a rounded base, on it and on the one that it was rounded from."""
    rows = [["adapter", "rounded base: accuracy (%)", "whole base: accuracy (%)", "answers that change"]]
    for one in file["results"]["adapters"]:
        reached = (f"{one['accuracy'][base]:.2f}" for base in ("rounded", "whole"))
        rows.append([one["adapter"], *reached, str(one["answers_that_change"])])
    return table(*rows)


def held_out(file: dict) -> str:
    """What one run of each setting reached on sentences held out of train."""
    rows = [["rank", "epochs", "dropout", "rate", "trainable", "accuracy (%)", "loss (nats)"]]
    for one in file["results"]:
        asked = (str(one["rank"]), str(one["epochs"]), f"{one['dropout']:g}", f"{one['lr']:g}")
        rows.append([*asked, f"{one['trainable']:,}", f"{one['accuracy']:.2f}", f"{one['loss']:.4f}"])
    counts = f"{file['held_out_sentences']} sentences held out, {file['train_sentences']:,} rows trained on"
    return f"{table(*rows)}\n\n{counts}: `{file['command']}`"


def written(text: str) -> str:  # with every figure as the results have it
    kinds = (
        compared,
        verdicts,
        ranks,
        two_rates,
        whole_job,
        by_loss_and_accuracy,
        comparison,
        rates,
        tuned,
        epochs,
    )
    kinds += (processes, contended, memory, published_memory, relatives, quantised, moments, dtypes)
    kinds += (coverage, lens_layers, lens_parts, lens_beside, lens_ranks, peaks, default_rates)
    kinds += (shares, lens_thresholds, none_left_out, orders, flat_ranges, lens_amplified)
    kinds += (differences, missed, lens_qkv, ways, held_out, near_defaults, whole_base)
    kinds = {kind.__name__: kind for kind in kinds}
    return FIGURE.sub(figure, BLOCK.sub(lambda m: m[1] + kinds[m[3]](load(m[2])) + m[5], text))


def by_hand(text: str) -> str:  # what no result is behind, code left out
    return re.sub(r"^```.*?^```", "", FIGURE.sub("", BLOCK.sub("", text)), flags=re.S | re.M)


@EACH
def test_figures_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- ") == len(FIGURE.findall(text)) + 2 * len(BLOCK.findall(text))
    assert text.splitlines() == written(text).splitlines()
    assert page.name not in ("README.md", "speed.md") or MEASURED.findall(by_hand(text)) == []


def test_no_plus_minus_that_leaves_open_what_it_is():
    """An interval is written out, and a standard deviation is called SD: on pages, screen and pictures."""
    sources = [
        path for folder in ("lora_from_scratch", "benchmarks", "docs") for path in (ROOT / folder).rglob("*")
    ]
    texts = [path for path in [PAGES[0], *sources] if path.suffix in (".py", ".md", ".svg", ".html", ".css")]
    assert [
        path.name for path in texts if re.search(r"±|\+-\s*\d|\+/-", path.read_text(encoding="utf-8"))
    ] == []


def test_the_commands_on_the_pages_are_ones_that_the_parsers_know():
    """What follows run.py in each ```bash block; nothing is run."""
    read = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            for command in re.findall(r"run\.py ([^\n&|]*)", block):
                first, *rest = shlex.split(command, comments=True)
                parser = command_parser(first) if first in COMMANDS else run_parser()
                read.append((first, parser.parse_args(rest if first in COMMANDS else [first, *rest])))
    assert {first for first, _ in read} > {*COMMANDS, "--method"} and len(read) >= 10


def test_loras_accuracy_on_sst2_has_one_value():
    """Where it is the default one; other settings stand on the pages of their comparisons."""
    (dataset,) = load("sst2-methods/results.json")["datasets"]
    lora = next(one for one in dataset["variants"] if one["method"] == "lora")
    found = set()
    for page in PAGES:
        for paragraph in re.split(r"\n\s*\n", by_hand(page.read_text(encoding="utf-8"))):
            if "lora" in paragraph.lower():
                found |= set(re.findall(r"\b[6-9]\d\.\d+\b", paragraph)) - QUOTED.get(page.name, set())
    assert found <= {f"{lora['accuracy']['mean']:.2f}"}


@EACH
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(r"(?<![\w/.])(\w+/[\w./-]+\.(?:py|md|svg))\b", text)
    missing += [path for path in paths if not any((folder / path).exists() for folder in FOLDERS)]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert missing + [test for test in re.findall(r"`(test_\w+)`", text) if f"def {test}(" not in tests] == []


def test_the_readme_is_a_front_door():
    """At most 150 lines; links to every page of docs/; lists every module, and no other."""
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in text] == []
    listed, folders = set(), {0: ROOT}
    for line in re.search(r"```\n(run\.py.*?)```", text, re.S)[1].splitlines():
        depth = len(line) - len(line.lstrip())
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            listed.add(folders[depth] / name)
            folders[depth + 2] = folders[depth] / name
    modules = {path for path in FOLDERS[2].rglob("*.py") if path.name != "__init__.py"}
    assert [path for path in listed if not path.exists()] + list(modules - listed) == []


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
