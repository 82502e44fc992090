"""What the glass box saw, as tables: the terminal shows them as text, explain.html sets them."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_from_scratch.report.numbers import count
from lora_from_scratch.report.tables import shown

Record = dict[str, object]  # what `glass_box` gives, and of its model: "adapter", "base", "asked_rank"
Row = tuple[str, ...]

WIDTH = 80  # characters of a line
NOTHING = "-"
NAMES = {  # of tensors of the forward pass; others have the names of their modules
    "wte": "wte(tokens)",
    "wpe": "wpe(positions)",
    "ln_1": "ln_1(x)",
    "attn.c_attn": "attn.c_attn: q, k and v",
    "attn.c_attn.q": "  q, head by head",
    "attn.c_attn.k": "  k",
    "attn.c_attn.v": "  v",
    "attn.weights": "softmax(scale q k^T)",
    "attn.y": "y = softmax(...) v",
    "x + attention": "x = x + attn.c_proj",
    "ln_2": "ln_2(x)",
    "mlp.act": "gelu(mlp.c_fc)",
    "ln_f": "ln_f(x)",
    "last": "at the last token",
    "score": "score: the logits",
}
PLAIN = "LoRALinear"  # the kind of layer that adds s B A x; its relatives add other things


@dataclass(frozen=True)
class Table:
    """Rows of cells in groups, each under its heading, or without one where that is empty."""

    id: str
    title: str
    note: str
    columns: Row  # their titles
    words: int  # so many columns, from the left, are words; the others are numbers
    groups: Sequence[tuple[str, Sequence[Row]]]
    after: str = ""


def facts(record: Record) -> list[tuple[str, str]]:
    """What stands above the tables."""
    share = next(row["probability"] for row in record["labels"] if row["label"] == record["predicted"])
    of = "the predicted label" if record["label"] == record["predicted"] else "the label that was asked for"
    base = f", on {record['base']}" if record["base"] else ""
    return [
        ("text", record["text"]),
        ("model", f"{record['adapter']}{base}"),
        ("prediction", f"{shown(record['predicted'])}, probability {share:.4f}"),
        ("loss", f"{figure(record['loss'])}, of {shown(record['label'])}, {of}"),
    ]


def tables(record: Record) -> list[Table]:
    """In the order of computing: tokens, forward, LoRA, labels, backward, and backward at step one."""
    found = [_tokens(record), _forward(record)]
    if "layers" in record:
        found.append(_lora(record["layers"], record.get("asked_rank")))
    found += [_labels(record["labels"]), _gradients(record)]
    if "at_step_one" in record:
        found.append(_at_step_one(record["at_step_one"]))
    return found


def text(record: Record) -> str:
    """All of it for a terminal of 80 columns; only a longer name or word makes a longer line."""
    whole = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * 12}
    lines = [
        textwrap.fill(value, WIDTH, initial_indent=f"{name:12}", **whole) for name, value in facts(record)
    ]
    return "\n".join([*lines, *(line for table in tables(record) for line in ("", *_lines(table)))])


def figure(value: float | None) -> str:
    """A number with four digits, and "0" where it is exactly zero."""
    if not value:
        return NOTHING if value is None else "0"
    return f"{value:#.4g}".rstrip(".")


def _lines(table: Table) -> Iterator[str]:
    yield table.title.upper()
    yield from textwrap.wrap(table.note, WIDTH)
    yield ""
    rows = [table.columns, *(row for _, rows in table.groups for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Row) -> str:
        cells = [
            cell.ljust(width) if i < table.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"  {'  '.join(cells)}".rstrip()

    yield line(table.columns)
    for heading, rows in table.groups:
        yield from [heading] if heading else []
        yield from map(line, rows)
    if table.after:
        yield ""
        yield from textwrap.wrap(table.after, WIDTH)


def _tokens(record: Record) -> Table:
    note = "The text is cut into tokens. Each has an id, its row of wte, and a position, its row of wpe."
    if record["cut"]:
        read = count(len(record["tokens"]), "token")
        note += f" This text is longer: it was cut after {read}, all that the model can read."
    rows = [(repr(one["token"]), str(one["id"]), str(one["position"])) for one in record["tokens"]]
    return Table("tokens", "Tokens", note, ("token", "id", "position"), 1, [("", rows)])


def _forward(record: Record) -> Table:
    note = (
        "Every tensor from the tokens to the logits, as core/gpt2.py computes them, dropout off. norm: the "
        "root of the sum of its squares. gradient: the norm of dL/d(tensor), or "
        f"{NOTHING} where none is computed."
    )
    columns = ("tensor", "shape", "dtype", "norm", "gradient")
    return Table("forward", "Forward", note, columns, 3, list(_sections(record)))


def _sections(record: Record) -> Iterator[tuple[str, list[Row]]]:
    """The tensors of the embeddings, of each block and of the head. A block ends with the x that it made."""
    kinds = {layer["name"]: layer["kind"] for layer in record.get("layers", ())}
    section, rows = "embeddings", []
    for one in record["forward"]:
        block, name = re.fullmatch(r"(?:h\.(\d+)\.)?(.*)", one["name"]).groups()
        prefixed = name == "x" and one["shape"][1] > len(record["tokens"])
        if (name == "ln_1" and section != f"block {block}") or name == "ln_f" or prefixed:
            yield section, rows
            section, rows = "head" if name == "ln_f" else f"block {block}", []
        called = NAMES.get(name, name)
        layer, _, part = name.rpartition(".")
        if one["name"] in kinds:
            called = f"{name}: their sum"
        elif part == "update":
            called = f"{layer}: {'s B A x' if kinds[f'h.{block}.{layer}'] == PLAIN else 'the update'}"
        elif part == "base_layer":
            called = f"{layer}: W0 x + b"
        elif prefixed:
            called = "learned prefix, then x"
        elif name == "x":
            called = "x = wte + wpe" if section == "embeddings" else "x = x + mlp.c_proj"
        rows.append((called, _shape(one), one["dtype"], *_norms(one)))
    yield section, rows


def _lora(layers: Sequence[Record], asked_rank: int | None) -> Table:
    added = "s B A x" if all(layer["kind"] == PLAIN for layer in layers) else "update"
    note = (
        f"What each layer adds, |{added}|, beside what was there, |W0 x + b|, over all tokens. ratio: of the "
        "two norms. cosine: of the angle between the two. s = scaling."
    )
    if asked_rank:
        note += f" rank: in the files, where updates lie stacked; the run had --rank {asked_rank}."
    columns = ("layer", "rank", "scaling", "|W0 x + b|", f"|{added}|", "ratio", "cosine")
    rows = [
        (
            layer["name"],
            str(layer["rank"]),
            f"{layer['scaling']:.4g}",
            *(figure(layer[key]) for key in ("frozen", "update", "ratio")),
            NOTHING if layer["cosine"] is None else f"{layer['cosine']:.4f}",
        )
        for layer in layers
    ]
    return Table("lora", "LoRA beside W0", note, columns, 1, [("", rows)])


def _labels(labels: Sequence[Record]) -> Table:
    """The logits are not rounded to fewer digits than classes differ in: four behind the point."""
    keys, columns, note = ("logit", "probability"), ("label", "logit", "probability"), ""
    if "logit_without" in labels[0]:
        keys += ("logit_without", "probability_without")
        columns = ("label", "logit", "probability", "logit, LoRA off", "probability")
        note = " LoRA off: the layers compute W0 x + b alone, and the head is the trained one."
    rows = [(shown(label["label"]), *(f"{label[key]:.4f}" for key in keys)) for label in labels]
    note = f"probability: the softmax of the logits.{note}"
    return Table("labels", "Labels", note, columns, 1, [("", rows)])


def _gradients(record: Record) -> Table:
    note = (
        "One step back from the loss, -log(probability) of its label. Each tensor that learns, with its own "
        "norm and that of dL/d(tensor)."
    )
    frozen = record["frozen"]
    after = (
        f"Frozen: {count(frozen['tensors'], 'tensor')} of {count(frozen['numbers'], 'number')}. "
        f"{frozen['with_gradient'] or 'None'} of them got a gradient."
    )
    rows = [
        (one["name"].removeprefix("transformer."), _shape(one), one["dtype"], *_norms(one))
        for one in record["gradients"]
    ]
    columns = ("tensor", "shape", "dtype", "norm", "gradient")
    return Table("gradients", "Backward", note, columns, 3, [("", rows)], after)


def _at_step_one(step: Record) -> Table:
    of_A = "dL/dA = s B^T (dL/dh) x^T holds B, so it is exactly zero."
    if all(layer["A"] is None for layer in step["layers"]):
        of_A = "A is frozen, and dL/dA not computed."
    note = (
        "The same step with every B at zero, as LoRA's training begins; all else is the trained one here. "
        f"The loss is {figure(step['loss'])}. {of_A} "
        "dL/dB = s (dL/dh) (A x)^T is not."
    )
    rows = [(layer["name"], figure(layer["A"]), figure(layer["B"])) for layer in step["layers"]]
    return Table("step-one", "At step one", note, ("layer", "|dL/dA|", "|dL/dB|"), 1, [("", rows)])


def _shape(one: Record) -> str:
    return f"({', '.join(map(str, one['shape']))}{',' * (len(one['shape']) == 1)})"


def _norms(one: Record) -> Row:
    return figure(one["norm"]), figure(one["gradient"])
