"""explain: one text through an adapted model and back, as text and as a page."""

from pathlib import Path

from lora_from_scratch.base.load import display_name
from lora_from_scratch.cli.loading import told_while
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.formats.whole_files import appearing
from lora_from_scratch.lens.glass_box import glass_box
from lora_from_scratch.report import explain_page, explained
from lora_from_scratch.runs.record import as_json

JSON = "explain.json"


def explain(
    adapter: Path, model: str | None, text: str, label: str | None = None, output_dir: Path | None = None
) -> None:
    """Print what `glass_box` saw; with a folder, write it there too, as a page and as JSON."""
    with told_while("loading the model"):
        adapted = load_adapted(adapter, model)
    base = None if adapted.base_name is None else display_name(adapted.base_name)
    record = {**glass_box(adapted, text, label), "adapter": str(adapter), "base": base}
    print(explained.text(record))
    if output_dir:
        with appearing(output_dir) as aside:
            (aside / explain_page.FILE).write_text(explain_page.page(record), encoding="utf-8")
            (aside / JSON).write_bytes(as_json(record))
        print(f"\nwritten     {output_dir}: {explain_page.FILE}, {JSON}")
