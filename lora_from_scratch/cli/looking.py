"""What was learned, looked at: explain, inspect and truncate."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from lora_from_scratch.base.load import display_name
from lora_from_scratch.cli.loading import told_while
from lora_from_scratch.cli.naming import loaded, named
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats import peft
from lora_from_scratch.formats.whole_files import appearing
from lora_from_scratch.lens import truncate as smaller
from lora_from_scratch.lens.glass_box import glass_box
from lora_from_scratch.lens.opened import check_beside, check_layers, open_run
from lora_from_scratch.lens.record import lens_record
from lora_from_scratch.lens.sentences import sentences_of
from lora_from_scratch.report import explain_page, explained, lens_page
from lora_from_scratch.report.lens_view import screen
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.record import as_json, asked_rank, read_record
from lora_from_scratch.train.device import resolve_device

JSON = "explain.json"


def explain(
    adapter: Path, model: str | None, text: str, label: str | None = None, output_dir: Path | None = None
) -> None:
    """Print what `glass_box` saw; with a folder, write it there too, as a page and as JSON."""
    with told_while("loading the model"):
        adapted = loaded(adapter, model)
    base = None if adapted.base_name is None else display_name(adapted.base_name)
    ranks = [layer.rank for _, layer in lora_layers(adapted.model)]
    about = {"adapter": str(adapter), "base": base, "asked_rank": asked_rank(read_record(adapter), ranks)}
    record = {**glass_box(adapted, text, label), **about}
    print(explained.text(record))
    if output_dir:
        with appearing(output_dir) as aside:
            (aside / explain_page.FILE).write_text(explain_page.page(record), encoding="utf-8")
            (aside / JSON).write_bytes(as_json(record))
        print(f"\nwritten     {output_dir}: {explain_page.FILE}, {JSON}")


def inspect(
    adapter: Path, beside: Sequence[Path], label_names: list[str] | None, asked: RunConfig, output_dir: Path
) -> None:
    """Write lens.json, the page and its pictures: what was learned, and what parts of it are worth.

    `asked.model` is the base. UserError where there is nothing to inspect, or those beside it do not fit.
    """
    device = resolve_device(asked.device)
    with told_while("loading the models"):
        opened, *others = (open_run(folder, asked.model) for folder in (adapter, *beside))
        named(opened.adapted, label_names)
        for other in others:
            check_beside(opened, other)
    sentences = sentences_of(opened, asked)
    opened.adapted.model.to(device)
    record = lens_record(opened, others, sentences)
    written = lens_page.write_lens(record, output_dir)
    print(screen(record))
    print(f"written     {output_dir}: {', '.join(written)}")


def truncate(adapter: Path, model: str | None, rank: int, out: Path) -> None:
    """Write the adapter that keeps the first `rank` directions of each layer.

    UserError where there is no B A to take them from.
    """
    with told_while("loading the model"):
        adapted = loaded(adapter, model)
    check_layers(adapted.model, adapter, "truncate")
    ranks = [layer.rank for _, layer in lora_layers(adapted.model)]
    if not ranks:
        raise UserError(f"{adapter}: there is nothing to truncate: it holds no B A beside a matrix")
    if rank >= max(ranks):
        told = f"--rank {rank}: no layer of {adapter} has a higher rank"
        warnings.warn(f"{told}, so {out} is a copy; ask for less than {max(ranks)}", stacklevel=2)
    lost = smaller.truncate(adapted.model, rank)
    peft.save(adapted, out)
    print(f"truncated   {out}: rank {rank} of {max(ranks)}, {100 * lost:.3g} % of the update's norm lost")
