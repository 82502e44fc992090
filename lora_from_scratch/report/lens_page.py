"""lens.html: what one adapter learned, as one file; lens.json with every number, and the pictures as PNG."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from lora_from_scratch.formats.whole_files import appearing
from lora_from_scratch.report import drawing, lens_curves, lens_rows, lens_view
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.lens_view import BESIDE, KEPT, Lens
from lora_from_scratch.report.templates import rendered
from lora_from_scratch.runs.record import as_json

PAGE, NUMBERS = "lens.html", "lens.json"
GROUPS = {  # where on the page each picture stands
    "layers": {
        "spectrum": lens_rows.spectrum,
        "amplification": lens_rows.amplification,
        "cosines": lens_curves.cosines,
    },
    "worth": {"truncation": lens_curves.truncation},
    "beside": {"overlap": lens_curves.overlap},
}


def lens_page(lens: Lens, pictures: dict[str, Picture] | None = None) -> str:
    """The whole page as HTML; equal records give equal pages. `pictures` that are not given are drawn."""
    if pictures is None:
        pictures = lens_pictures(lens)
    adapter, measured = lens["adapters"][0], lens["measured"]
    beside = len(lens["adapters"]) > 1
    return rendered(
        PAGE,
        lens=lens,
        adapter=adapter,
        kind=lens_view.kind(adapter),
        headline=lens_view.headline(lens),
        facts=_facts(lens),
        pictures={
            group: [pictures[name] for name in names if name in pictures] for group, names in GROUPS.items()
        },
        layers=(lens_view.LAYERS, lens_view.layer_rows(adapter)),
        kept=(KEPT, lens_view.kept_rows(measured)) if measured else None,
        scaled=(("scale of ΔW", *KEPT[2:]), lens_view.scaled_rows(measured)) if measured else None,
        left_out=(("layer left out", *KEPT[2:]), lens_view.left_out_rows(measured)) if measured else None,
        beside=(BESIDE, lens_view.beside_rows(lens)) if beside else None,
        overlaps=[
            (one["label"], (lens_view.OVERLAPS, lens_view.overlap_rows(one))) for one in lens["overlaps"]
        ],
    )


def lens_pictures(lens: Lens) -> dict[str, Picture]:
    """Every picture that has something to show, by its name, which is that of its PNG; none without
    matplotlib."""
    if not drawing.available():
        return {}
    drawn = {name: draw(lens, name) for group in GROUPS.values() for name, draw in group.items()}
    return {name: picture for name, picture in drawn.items() if picture}


def write_lens(lens: Lens, folder: Path) -> list[str]:
    """The page, the numbers and a PNG a picture, all or none; returns their names."""
    pictures = lens_pictures(lens)
    with appearing(folder) as aside:
        (aside / PAGE).write_bytes(lens_page(lens, pictures).encode())
        (aside / NUMBERS).write_bytes(as_json(lens))
        for name, picture in pictures.items():
            (aside / f"{name}.png").write_bytes(picture.png)
    written = [PAGE, NUMBERS, *(f"{name}.png" for name in pictures)]
    drawing.remove_earlier(folder, chain(*GROUPS.values()), written)
    return written


def _facts(lens: Lens) -> list[tuple[str, str]]:
    adapter, measured = lens["adapters"][0], lens["measured"]
    facts = [("base", adapter["model"]), ("trained on", adapter["trained_on"] or "not recorded")]
    facts.append(("layers", f"{len(adapter['layers'])}"))
    told = f"{measured['sentences']:,} sentences" if measured else "no sentences"
    return [*facts, ("intruders", lens_view.intruders(lens, adapter)), ("measured on", told)]
