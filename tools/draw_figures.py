"""The figures of docs/ that follow from shapes alone: plain SVG, the same bytes each time.

    python tools/draw_figures.py        # writes them into docs/

tests/test_figures.py draws them again, and counts their numbers on GPT-2 small itself. They are 480 units
wide with letters of 15 and more, so that a telephone shows them large enough to read.
"""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
IN, OUT, R, BLOCKS = 768, 2304, 4, 12  # GPT-2 small's c_attn, the default rank, and its blocks
TENSORS_OF_A_BLOCK = 12  # c_attn, attn.c_proj, c_fc and mlp.c_proj, ln_1 and ln_2: weight and bias of each
WIDTH = 480
INK, PALE, ARROW = "#1f2933", "#334e68", "#52606d"
FROZEN, LEARNS, EMPTY = ("#d9e2ec", "#486581"), ("#fce0b3", "#b44d12"), ("#ffffff", "#829ab1")

ROWS = (  # of the picture of the backward pass: top, height, kind, words
    (70, 44, FROZEN, "token and position embeddings"),
    (134, 36, FROZEN, "block 0: ln_1"),
    (176, 62, FROZEN, "c_attn: W0"),
    (244, 36, FROZEN, "attention, MLP"),
    (300, 36, FROZEN, "block 1: ln_1"),
    (342, 62, FROZEN, "c_attn: W0"),
    (410, 36, FROZEN, f"and so on, to block {BLOCKS - 1}"),
    (466, 36, FROZEN, "ln_f"),
    (522, 36, LEARNS, "score, the head"),
    (578, 36, EMPTY, "loss"),
)


def text(x: float, y: float, words: str, size: int = 15, anchor: str = "middle", fill: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{words}</text>'


def lines(x: float, y: float, *words: str, anchor: str = "start", step: int = 20) -> list[str]:
    return [text(x, y + step * i, line, anchor=anchor) for i, line in enumerate(words)]


def box(x: float, y: float, width: float, height: float, kind: tuple[str, str]) -> str:
    fill, stroke = kind
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'


def path(d: str, colour: str = ARROW, tip: str = "tip") -> str:
    end = f' marker-end="url(#{tip})"' if tip else ""
    return f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="2.5"{end}/>'


def legend(x: float, y: float) -> list[str]:
    kinds = ((FROZEN, "frozen"), (LEARNS, "learns"))
    marks = [box(x + 90 * i, y - 12, 14, 14, kind) for i, (kind, _) in enumerate(kinds)]
    return marks + [text(x + 90 * i + 21, y, word, anchor="start") for i, (_, word) in enumerate(kinds)]


def svg(height: int, title: str, description: str, parts: list[str]) -> str:
    """The whole file: what it shows in words, a white card that a dark page does not shine through, parts."""
    tips = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
        for name, colour in (("tip", ARROW), ("back", LEARNS[1]))
    )
    body = "\n".join(f"  {part}" for part in parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" \
height="{height}" role="img" font-family="system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif">
  <title>{title}</title>
  <desc>{description}</desc>
  <defs>{tips}</defs>
  <rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="12" fill="#ffffff" stroke="#cbd2d9"/>
{body}
</svg>
"""


def w0_a_b() -> str:
    """W0 beside B and A, their lengths to one scale."""
    unit = IN / 120  # numbers to a unit of the picture
    wide, high, thin = IN / unit, OUT / unit, 5 * R / unit
    whole, a, b = OUT * IN, R * IN, OUT * R
    top, column, row = 96, 276, 320
    parts = [
        text(WIDTH / 2, 40, "h = W0 x + (α / r) B A x", 21),
        text(WIDTH / 2, 66, f"GPT-2 small's c_attn, r = {R}", fill=PALE),
        box(40, top, wide, high, FROZEN),
        text(100, top + 150, "W0", 22),
        *lines(100, top + 178, "frozen", f"{OUT} × {IN}", f"{whole:,}", "numbers", anchor="middle"),
        text(185, top + 165, "+", 26),
        text(234, top + 163, "(α / r)", 18),
        box(column, top, thin, high, LEARNS),
        box(row, top, wide, thin, LEARNS),
        text(row + 60, top + 30, "A", 22),
        *lines(row + 60, top + 54, f"{R} × {IN}", f"{a:,} numbers", "random at first", anchor="middle"),
        text(column + 14, top + 200, "B", 22, "start"),
        *lines(column + 14, top + 224, f"{OUT} × {R}", f"{b:,} numbers", "zero at first"),
        *lines(
            40,
            top + high + 32,
            f"{a + b:,} numbers learn beside {whole:,}: {(a + b) / whole:.1%}".replace("%", " %"),
            "Lengths are to scale. A and B are 5 times too thick.",
            f"Conv1D stores W0 as {IN} × {OUT}: its transpose.",
        ),
    ]
    description = (
        f"W0 is a tall frozen rectangle of {OUT} by {IN}. Beside it stand B, a thin column of {OUT} by {R} "
        f"that starts at zero, and A, a thin row of {R} by {IN} that starts random. Both learn."
    )
    return svg(550, "W0 beside A and B, with their shapes", description, parts)


def fused(top: float, shared: bool, *words: str) -> list[str]:
    """Wq, Wk and Wv upon one another as c_attn holds them, plus their B and A, and words beside it."""
    side, thin, left, right = 70, 14, 178, 290
    columns = 1 if shared else 3
    parts = [text(140, top + 1.5 * side + 8, "+", 26), *lines(right, top + 100, *words)]
    for i, name in enumerate("qkv"):
        y = top + i * side
        parts += [box(40, y, side, side, FROZEN), text(75, y + side / 2 + 6, f"W{name}", 17)]
        for j in range(columns):
            parts.append(box(left + j * thin, y, thin, side, LEARNS if shared or i == j else EMPTY))
        parts.append(text(left + columns * thin + 8, y + side / 2 + 5, f"B{name}", anchor="start"))
    parts += [box(right, top + i * thin, side, thin, LEARNS) for i in range(columns)]
    names = "A" if shared else "Aq, Ak, Av"
    return [*parts, text(right + side + 8, top + columns * thin / 2 + 5, names, anchor="start")]


def fused_c_attn() -> str:
    """The fused matrix with one A for its three parts, and with an A for each."""
    each, first, second = 3 * R * (IN + IN), 84, 400
    one = f"A: {R} × {IN}", f"B: {OUT} × {R}", f"{R * (IN + OUT):,} numbers"
    three = f"A: {3 * R} × {IN}", f"B: {OUT} × {3 * R}, with", "zeros that stay", f"{each:,} numbers;"
    parts = [
        text(24, 36, "c_attn holds Wq, Wk and Wv in one matrix", 18, "start"),
        text(24, first - 14, "One A for all three, as here:", anchor="start", fill=PALE),
        *fused(first, True, *one),
        text(24, second - 42, "An A for each, as in the paper, written", anchor="start", fill=PALE),
        text(24, second - 20, "as one A and one B:", anchor="start", fill=PALE),
        *fused(second, False, *three, f"q and v alone: {each * 2 // 3:,}"),
        *legend(290, second + 244),
    ]
    description = (
        "Above: Wq, Wk and Wv in one column, beside it one thin column B in three parts, and one thin row A "
        "that the three share. Below: three thin rows Aq, Ak, Av, and a B of three columns in which Bq, Bk "
        "and Bv lie on the diagonal and everything else is zero."
    )
    return svg(660, "The fused c_attn with one A, and with an A for each of q, k and v", description, parts)


def backward_and_forward() -> list[str]:
    """The arrows beside the model, and what they say."""
    colour = LEARNS[1]
    return [
        path("M34 74 V610"),
        path("M302 596 H328 V212", colour, ""),
        *(path(f"M328 {y} H306", colour, "back") for y in (540, 373, 212)),
        path("M316 186 H340", colour, ""),
        *lines(342, 100, "Nothing up here", "learns: backward", "ends at the", "lowest A."),
        *lines(
            342, 296, "Through frozen", "W0 a gradient", "goes on to its", "input. W0 itself", "gets none."
        ),
        *lines(342, 470, "A, B and score", "get one."),
        text(342, 601, "backward", anchor="start", fill=colour),
        f'<g transform="rotate(-90 25 350)">{text(25, 350, "forward", fill=ARROW)}</g>',
    ]


def where_gradients_stop() -> str:
    """GPT-2 from input to loss, and how far the backward pass goes."""
    left, wide, got = 50, 250, 2 * BLOCKS + 1
    tensors = BLOCKS * (TENSORS_OF_A_BLOCK + 2) + 2 + 2 + 1  # with A and B; wte, wpe; ln_f's two; score
    parts = [text(24, 38, "Where gradients stop", 18, "start"), *legend(290, 37)]
    for top, height, kind, words in ROWS:
        parts.append(box(left, top, wide, height, kind))
        at, anchor = (left + 12, "start") if "W0" in words else (left + wide / 2, "middle")
        parts.append(text(at, top + height / 2 + 5, words, anchor=anchor))
    for top in (176, 342):
        for i, name in enumerate("AB"):
            parts.append(box(left + 140 + 52 * i, top + 12, 42, 38, LEARNS))
            parts.append(text(left + 161 + 52 * i, top + 37, name, 17))
    parts += [
        *backward_and_forward(),
        text(WIDTH / 2, 648, f"{got} of {tensors} tensors get a gradient: {BLOCKS} A, {BLOCKS} B, score."),
    ]
    description = (
        "GPT-2 from the embeddings down to the loss. The backward pass goes up from the loss through the "
        "head and every block to c_attn of block 0, where the lowest A and B are, and ends there. Frozen "
        "matrices hand a gradient on to their input and get none themselves."
    )
    return svg(670, "Where gradients stop under LoRA on c_attn", description, parts)


FIGURES = {
    "w0-a-b.svg": w0_a_b,
    "fused-c-attn.svg": fused_c_attn,
    "where-gradients-stop.svg": where_gradients_stop,
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (DOCS / name).write_text(draw(), encoding="utf-8")
