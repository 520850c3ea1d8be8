"""Charts as inline SVG, and tables. Colours are classes of style.css."""

from html import escape

WIDTH = 920
LABELS = 190


def text(x, y, content, kind="", anchor="start"):
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(str(content))}</text>'


def box(x, y, width, height, kind, told):
    return f'<rect x="{x:g}" y="{y:g}" width="{max(width, 0):g}" height="{max(height, 0):g}" class="{kind}"><title>{escape(told)}</title></rect>'


def svg(height, parts):
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img">{"".join(parts)}</svg>'


def legend(*entries):
    return "<ul class=legend>" + "".join(f"<li><i class={kind}></i>{escape(name)}</li>" for name, kind in entries) + "</ul>"


def steps(largest):
    """Round values for an axis: about four of them."""
    step = 1
    while largest / step > 5:
        step *= 2.5 if str(step).startswith("2") else 2
    return [step * number for number in range(int(largest // step) + 1)]


def columns(groups, kinds, names):
    """Stacked columns: (label, values)."""
    height, top, bottom, left = 230, 10, 24, 36
    largest = max((sum(values) for _, values in groups), default=0) or 1
    scale, width = (height - top - bottom) / largest, (WIDTH - left) / max(len(groups), 1)
    parts = []
    for step in steps(largest):
        y = height - bottom - step * scale
        parts += [f'<line x1="{left}" x2="{WIDTH}" y1="{y:g}" y2="{y:g}" class="grid"/>', text(left - 6, y + 4, f"{step:g}", "axis", "end")]
    for at, (label, values) in enumerate(groups):
        x, y = left + at * width, height - bottom
        for kind, name, value in zip(kinds, names, values):
            y -= value * scale
            parts.append(box(x + width * 0.12, y, width * 0.76, value * scale, kind, f"{label}:00, {value} {name}"))
        parts.append(text(x + width / 2, height - 8, label, "axis", "middle"))
    return svg(height, parts)


def heat(rows, names, value):
    """A table of numbers, in a stronger colour where they are larger."""
    cell, top = 30, 22
    width = (WIDTH - LABELS) / max(len(names), 1)
    largest = max((value(row, column) for row in range(len(rows)) for column in range(len(names))), default=0) or 1
    parts = [text(LABELS + column * width + width / 2, 14, name, "axis", "middle") for column, name in enumerate(names)]
    for row, label in enumerate(rows):
        y = top + row * cell
        parts.append(text(LABELS - 8, y + cell / 2 + 4, shorten(label), "", "end"))
        for column, name in enumerate(names):
            number = value(row, column)
            share = number / largest
            x = LABELS + column * width
            parts.append(f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{width - 2:g}" height="{cell - 2}" class="cell"/>')
            if number:
                parts.append(f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{width - 2:g}" height="{cell - 2}" class="m" opacity="{0.15 + 0.85 * share:.2f}">'
                             f"<title>{escape(label)}, {name}:00: {number:g}</title></rect>")
                parts.append(text(x + width / 2, y + cell / 2 + 4, f"{number:.3g}", "on strong" if share > 0.5 else "on", "middle"))
    return svg(top + len(rows) * cell + 2, parts)


def bars(groups, write, largest):
    """Bars side by side: (label, [(kind, value)])."""
    thick, gap, parts, y = 14, 12, [], 4
    room = WIDTH - LABELS - 70
    for label, values in groups:
        parts.append(text(LABELS - 8, y + len(values) * thick / 2 + 4, shorten(label), "", "end"))
        for kind, value in values:
            width = room * (value or 0) / largest
            parts += [box(LABELS, y, room, thick - 2, "cell", label), box(LABELS, y, width, thick - 2, kind, f"{label}: {write(value)}"),
                      text(LABELS + room + 8, y + thick - 3, write(value), "axis")]
            y += thick
        y += gap
    return svg(y, parts)


def shares(groups, names):
    """Bars cut into parts that fill the width: (label, [(kind, count)])."""
    thick, parts, y = 24, [], 4
    room = WIDTH - LABELS - 70
    for label, counts in groups:
        total, x = sum(count for _, count in counts), LABELS
        parts.append(text(LABELS - 8, y + thick / 2 + 4, shorten(label), "", "end"))
        for (kind, count), name in zip(counts, names):
            width = room * count / total if total else 0
            parts.append(box(x, y, width - 1, thick, kind, f"{label}: {count} {name}"))
            if width > 24:
                parts.append(text(x + width / 2, y + thick / 2 + 4, count, "on" if kind == "b" else "on strong", "middle"))
            x += width
        parts.append(text(LABELS + room + 8, y + thick / 2 + 4, total, "axis"))
        y += thick + 8
    return svg(y, parts)


def shorten(label):
    return label if len(label) <= 24 else label[:23] + "…"


def table(names, rows, right=()):
    if not rows:
        return "<p class=none>None.</p>"
    numeric = [name in right or all(isinstance(row[column], (int, float)) for row in rows) for column, name in enumerate(names)]
    def cells(tag, values):
        return "".join(f"<{tag}{' class=number' if number else ''}>{escape(str(value))}</{tag}>" for value, number in zip(values, numeric))
    lines = [cells("th", names), *(cells("td", row) for row in rows)]
    return "<div class=scroll><table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"
