"""Large files of cells, read by pyarrow at once: faster than `delimited.py`, which reads row by row.

Whatever is not plain is left to that: it says which line is wrong. Where both read a file they read the same
(`tests/test_rows.py`).
"""

import codecs
from pathlib import Path

from lora_from_scratch.data.lines import bytes_of
from lora_from_scratch.data.rows import Rows, folded
from lora_from_scratch.errors import UserError

LARGE = 16 << 20  # bytes; below that, importing pyarrow takes as long as reading
BOM = b"\xef\xbb\xbf"


def read_at_once(
    path: Path, delimiter: str, encloses: bool, header: list[str], text: str, label: str
) -> Rows | None:
    """The labelled texts of two columns; None where the file needs to be read row by row.

    So it is where a quotation mark stands in the middle of a cell, where cells hold line breaks, where a
    text or a label is blank, where the header comes again, where bytes are no UTF-8, and where pyarrow
    refuses.
    """
    import pyarrow
    from pyarrow import csv

    try:
        data = bytes_of(path).removeprefix(BOM)
    except UserError:  # a damaged .gz, whose first lines may be wrong otherwise
        return None
    if (
        data.lstrip()[:1] != data[:1]
        or b"\0" in data
        or (encloses and b'"' in data and _odd_marks(data, delimiter))
        or not (len(header) == 2 or data.isascii() or _is_utf8(data))  # two columns are all converted
    ):
        return None
    marks = '"' if encloses else False
    strings = pyarrow.schema([(name, pyarrow.string()) for name in (text, label)])
    try:
        table = csv.read_csv(
            pyarrow.BufferReader(data),
            csv.ReadOptions(skip_rows=1, column_names=header),
            csv.ParseOptions(delimiter=delimiter, quote_char=marks),
            csv.ConvertOptions(column_types=strings, include_columns=[text, label]),
        )
    except (pyarrow.ArrowException, ValueError):
        return None
    if not _a_line_each(data, len(table) + 1):
        return None
    del data
    texts = list(map(str.strip, table[text].to_pylist()))
    coded = table[label].combine_chunks().dictionary_encode()
    names = [name.strip() for name in coded.dictionary.to_pylist()]
    again = folded(label) in map(folded, names)
    if "" in texts or "" in names or again or not texts:
        return None
    labels = [names[code] for code in coded.indices.to_pylist()]
    return Rows(texts, labels, range(2, len(texts) + 2), str(path), "line")


def _a_line_each(data: bytes, rows: int) -> bool:
    """Whether the rows, the header among them, are the lines, which end at \\n or \\r\\n."""
    if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
        return False
    return data.count(b"\n") + (not data.endswith(b"\n")) == rows


def _is_utf8(data: bytes) -> bool:
    """Whether all of it is; pyarrow looks at the columns alone that it converts."""
    decoder, megabyte = codecs.getincrementaldecoder("utf-8")(), 1 << 20
    try:
        for start in range(0, len(data), megabyte):
            decoder.decode(data[start : start + megabyte], final=start + megabyte >= len(data))
    except UnicodeDecodeError:
        return False
    return True


def _odd_marks(data: bytes, delimiter: str) -> bool:
    """Whether quotation marks stand where a writer would put none: inside a cell, and not doubled; or the
    last cell is never closed."""
    import numpy

    codes = numpy.frombuffer(data, dtype=numpy.uint8)
    at = numpy.flatnonzero(codes == ord('"'))
    gaps = numpy.flatnonzero(numpy.diff(at) > 1)
    first, last = at[numpy.r_[0, gaps + 1]], at[numpy.r_[gaps, -1]]  # of each run of marks
    edge = numpy.zeros(256, dtype=bool)
    edge[list(f"{delimiter}\r\n".encode())] = True
    left = (first == 0) | edge[codes[first - 1]]
    right = (last == len(codes) - 1) | edge[codes[numpy.minimum(last + 1, len(codes) - 1)]]
    odd = (last - first) % 2 == 0
    opened = numpy.cumsum(odd & left)  # where a cell ends inside a text, this starts anew
    ended = numpy.maximum.accumulate(numpy.where(odd & ~left, opened, 0))
    inside = (opened - ended) % 2 == 1  # an enclosed cell, after each run
    before = numpy.r_[False, inside[:-1]]
    return bool(inside[-1] or (~right & numpy.where(before, odd, left & ~odd)).any())
