"""Large files of cells, read by pyarrow at once: ten times as fast as `delimited.py`, which reads row by row.

Whatever is not plain is left to that: it says which line is wrong. Where both read a file they read the same
(`tests/test_rows.py`).
"""

from pathlib import Path

from lora_from_scratch.data.lines import bytes_of
from lora_from_scratch.data.rows import Rows
from lora_from_scratch.errors import UserError

LARGE = 16 << 20  # bytes; below that, importing pyarrow takes as long as reading
BOM = b"\xef\xbb\xbf"


def read_at_once(
    path: Path, delimiter: str, encloses: bool, header: list[str], text: str, label: str
) -> Rows | None:
    """The labelled texts of two columns; None where the file needs to be read row by row.

    So it is where a quotation mark stands in the middle of a cell, where cells hold line breaks, where a
    text or a label is blank, where the header comes again, and where pyarrow refuses.
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
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if lines != len(table) + 1 or (b"\r" in data and data.count(b"\r") != data.count(b"\r\n")):
        return None
    del data
    texts = list(map(str.strip, table[text].to_pylist()))
    coded = table[label].combine_chunks().dictionary_encode()
    names = [name.strip() for name in coded.dictionary.to_pylist()]
    if "" in texts or "" in names or label.strip() in names or not texts:
        return None
    labels = [names[code] for code in coded.indices.to_pylist()]
    return Rows(texts, labels, range(2, len(texts) + 2), str(path), "line")


def _odd_marks(data: bytes, delimiter: str) -> bool:
    """Whether quotation marks stand where a writer would put none: inside a cell, and not doubled; or one that
    nothing closes."""
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
    return len(at) % 2 == 1 or bool((~right & (left ^ odd)).any())
