"""explain.html: what the glass box saw, as one file, without network and without scripts."""

from lora_from_scratch.report import explained
from lora_from_scratch.report.templates import rendered

FILE = "explain.html"


def page(record: explained.Record) -> str:
    """The whole page as HTML; equal records give equal pages."""
    return rendered(FILE, record=record, facts=explained.facts(record), tables=explained.tables(record))
