"""explain.html: what the glass box saw, as one file, without network and without scripts."""

from lora_from_scratch.report import explained, palette
from lora_from_scratch.report.page import template

FILE = "explain.html"


def page(record: explained.Record) -> str:
    """The whole page as HTML; equal records give equal pages."""
    return template(FILE).render(
        record=record,
        facts=explained.facts(record),
        tables=explained.tables(record),
        light=palette.variables("light"),
        dark=palette.variables("dark"),
    )
