"""The commands of many runs: compare and tune."""

import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lora_from_scratch.compare import plan
from lora_from_scratch.compare.cells import DONE, Cells
from lora_from_scratch.compare.going import Going
from lora_from_scratch.compare.held_out import with_held_out
from lora_from_scratch.compare.plan import Cell
from lora_from_scratch.compare.rates import FILE, TUNED, Rates
from lora_from_scratch.compare.shared import Shared
from lora_from_scratch.compare.summary import comparison, reference_among
from lora_from_scratch.compare.tune import Tuning, is_at_the_edge
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.whole_files import write_whole
from lora_from_scratch.report import page, rates_picture, screen
from lora_from_scratch.report.exports import comparison_markdown
from lora_from_scratch.runs.config import RECIPES, RunConfig
from lora_from_scratch.runs.record import as_json
from lora_from_scratch.runs.writable import RESULTS
from lora_from_scratch.train.interrupts import Interrupted

Values = Mapping[str, Sequence[object]]


def compare(
    methods: Sequence[str],
    seeds: Sequence[int],
    recipe: Sequence[str | None],
    rates: Path,
    flags: Values,
    output_dir: Path,
    dry_run: bool,
    reference: str | None = None,
    margin: float | None = None,
) -> None:
    """Run the plan as far as it is not done, and write results.json, the page, its pictures and tables.

    UserError where three equal failures in a row ended it; what there is by then is written all the same.
    """
    going = Going(Cells(output_dir), Shared())
    configs = [c for one in recipe for c in _configs(going, methods, flags, one, rates)]
    variants = plan.named(configs, plan.with_one_methods_values(methods, flags))
    cells = list(plan.cells(variants, seeds))
    reference = reference_among(variants, reference)
    sizes = f"{_counted(len(variants), 'variant')} x {_counted(len(seeds), 'seed')}"
    _tell(going, cells, f"{sizes}, compared with {reference}")
    if dry_run:
        return
    going.through(cells, "compare")
    found = comparison(going, variants, seeds, _command(), reference, margin)
    write_whole(output_dir / RESULTS, as_json(found))
    written = page.write_comparison(found, output_dir)
    print(f"\n{comparison_markdown(found)}")
    print(f"done        {found['done']} of {found['planned']} runs, {found['failed']} failed")
    print(f"written     {output_dir}: {', '.join([RESULTS, *written])}")
    _end(going, output_dir)
    if not found["done"]:
        raise UserError("every run failed, as told above; mend that and start the same command again")


def tune(methods: Sequence[str], flags: Values, output_dir: Path, dry_run: bool) -> None:
    """Choose the learning rate of each method and setting on held-out sentences; write rates.json.

    UserError where a method has no rate at the end, since its runs failed.
    """
    shared = Shared(with_held_out)
    going = Going(Cells(output_dir), shared)
    configs = [c for c in _configs(going, methods, flags, None, None) if c.way.trains]
    tuning = Tuning(going, plan.named(configs, plan.with_one_methods_values(methods, flags)))
    held_out = shared(configs[0]).dataset.validation_name
    whole = shared.data_fingerprint(configs[0])
    _tell(going, [], f"{tuning.budget()}, judged by the loss on {held_out}")
    if dry_run:
        return
    earlier = _earlier_rates(output_dir / FILE, {**going.digest(configs[0]), "data": whole})
    tuning.run()
    found = tuning.record(_command(), whole)
    found = earlier.added_to(found) if earlier else found
    write_whole(output_dir / FILE, as_json(found))
    written = [FILE]
    if picture := rates_picture.draw(found):
        write_whole(output_dir / "rates.png", picture)
        written.append("rates.png")
    for variant in found["variants"]:
        rate = "no rate" if variant["chosen"] is None else f"lr {variant['chosen']:g}"
        print(f"{variant['label']:30} {rate}")
        if is_at_the_edge(variant):
            told = f"the best rate, {variant['chosen']:g}, lies at the edge of what was tried"
            beyond = "a better one may lie beyond it, which compare --lr can try"
            print(f"warning: {variant['label']}: {told}; {beyond}", file=sys.stderr)
    print(f"runs        {found['budget']}")
    print(f"written     {output_dir}: {', '.join(written)}")
    _end(going, output_dir)
    if without := [variant["label"] for variant in found["variants"] if variant["chosen"] is None]:
        raise UserError(
            f"no rate for {quoted(*without)}: runs failed, as told above; mend that and start again"
        )


def _earlier_rates(file: Path, sources: dict[str, str]) -> Rates | None:
    """What was tuned before on the same data and base, and stays."""
    if not file.exists():
        return None
    rates = Rates(file)
    if rates.fit(sources):
        return rates
    told = f"{file} was tuned on other data or another base, and will be replaced"
    warnings.warn(f"{told}; name another --output-dir to keep it", stacklevel=2)
    return None


def _configs(
    going: Going, methods: Sequence[str], flags: Values, recipe: str | None, rates: Path | None
) -> list[RunConfig]:
    """What is asked, with every open choice filled in."""
    asked = plan.asked_for(methods, flags, RECIPES.get(recipe, {}))
    configs = [going.sources.decided(config) for config in asked]
    if recipe != TUNED:
        return configs
    tuned = Rates(rates)
    return [
        replace(config, lr=tuned.rate(config, going.digest(config))) if one.lr is None else config
        for one, config in zip(asked, configs, strict=True)
    ]


def _tell(going: Going, cells: Sequence[Cell], what: str) -> None:
    for sources in going.sources.found():
        if sources.substituted:
            print(screen.banner(sources))
    print(f"plan        {what}", flush=True)
    if cells:
        labels = "; ".join(dict.fromkeys(cell.variant.label for cell in cells))
        print(
            f"            {labels}\nruns        {len(cells)} planned, {len(going.done(cells))} done",
            flush=True,
        )


def _end(going: Going, folder: Path) -> None:
    """What failed and what was warned of, and how it ended, where that was before the plan's end."""
    said: dict[str, list[str]] = {}
    for cell, one in going.outcomes.items():
        for text in [*one.get("warnings", []), *([one["error"]] if one["status"] != DONE else [])]:
            said.setdefault(text, []).append(str(cell))
    for text, runs in said.items():
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        print(f"warning: {runs[0]}{more}: {text}", file=sys.stderr)
    if going.stopped == "interrupted":
        told = f"; what is done is in {folder}, and the same command goes on from there"
        raise Interrupted(told, going.signal)
    if going.stopped:
        raise UserError(f"{going.stopped}; mend that and start the same command again")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _command() -> str:
    return shlex.join(["python", "run.py", *sys.argv[1:]])
