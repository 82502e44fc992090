"""Pages from their templates: one file each, without network and without scripts."""

from __future__ import annotations

from pathlib import Path

from lora_from_scratch.report import drawing, numbers, palette

FILTERS = {
    "rate": numbers.rate,
    "seconds": numbers.seconds,
    "size": numbers.size,
    "percent": numbers.percent,
    "between": numbers.between,
    "setting": numbers.setting,
}


def rendered(template: str, **values: object) -> str:
    """A template of this room as HTML, with the palette's colours; equal values give equal pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # comes with torch

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    colours = {ground: palette.variables(ground) for ground in palette.GROUND}
    return environment.get_template(template).render(
        **values, **colours, drawn=drawing.available(), nothing=numbers.NOTHING
    )
