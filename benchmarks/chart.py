"""The README's chart, from committed results: frames a second of each candidate, one panel a size, training beside.

    python benchmarks/chart.py benchmarks/results/cpu.json --training benchmarks/results/train_cpu.json

The files are those that throughput.py and train_step.py write. The same results and the same matplotlib give the
same bytes.
"""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
OURS, THEIRS = "#c2410c", "#94a3b8"
BAR = 0.24  # inches
COLUMNS = 3


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inference", nargs="+", help="JSON of throughput.py")
    parser.add_argument("--training", nargs="*", default=[], help="JSON of train_step.py")
    parser.add_argument("--out", default=str(RESULTS / "chart.png"), help="PNG to write")
    return parser.parse_args()


def read(path):
    """A result file's content. Raises SystemExit with a sentence where it is none."""
    try:
        content = json.loads(Path(path).read_text())
        usable = all({"candidate", "size"} <= row.keys() for row in content["rows"]) and content["rows"]
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}")
    except (ValueError, LookupError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise SystemExit(f"{path} is no result of throughput.py or train_step.py: its rows name no candidate and size")
    return content


def bars(row):
    """(label, value in frames or steps a second, whether it is ours)"""
    name, precision = row["candidate"], row.get("precision", "float32")
    ours = name.startswith(("engine", "ours"))
    name = name.replace("engine, cpu", "dblr_fast").replace("engine,", "dblr_fast,").replace("ours", "dblr_fast")
    return f"{name}, {precision}", row.get("frames_per_s") or 1 / row["step_s"], ours


def panels(inference, training):
    """[(title, bars)]: sizes in the order of the files."""
    found = {}
    kinds = [(content, "restore", "frames/s") for content in inference] + [(c, "train", "steps/s") for c in training]
    for content, what, unit in kinds:
        limit = " (AVX2 alone)" if content.get("limited_to") else ""
        for row in content["rows"]:
            found.setdefault(f"{what} {row['size']}{limit}, {unit}", []).append(bars(row))
    return list(found.items())


def caption(contents):
    """What was measured, on what: one line for each kind of machine, one for the peers."""
    lines, versions = [], {}
    for c in contents:
        isa = ", ".join(filter(None, [c.get("isa"), "limited to AVX2" if c.get("limited_to") else None]))
        threads = f"{c['threads']} thread{'s' * (c['threads'] != 1)}"
        lines.append(f"{c['device']}{isa and f' ({isa})'}, {threads}, dblr_fast {c['commit']}, {c['date']}")
        versions |= {"torch": c["torch"]} | c.get("peers", {})
    lines.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n".join(dict.fromkeys(lines))


def draw(found, note, out):
    """Writes the PNG. Raises SystemExit with a sentence without matplotlib."""
    try:
        import matplotlib
        from PIL import Image  # matplotlib brings it
    except ImportError as error:
        raise SystemExit(f"chart.py needs matplotlib ({error}): pip install '.[bench]'")
    matplotlib.use("Agg")
    matplotlib.rcdefaults()  # a user's own style must not change the picture
    from matplotlib import pyplot

    matplotlib.rcParams["font.family"] = "DejaVu Sans"  # comes with matplotlib
    matplotlib.rcParams["font.size"] = 8
    columns = min(COLUMNS, len(found))
    longest = [max(len(rows) for _, rows in found[i:i + columns]) for i in range(0, len(found), columns)]
    height = sum(0.35 + BAR * bars for bars in longest) + 0.15 * (note.count("\n") + 2)
    figure, axes = pyplot.subplots(len(longest), columns, figsize=(3.6 * columns, height), squeeze=False, dpi=110,
                                   layout="constrained", height_ratios=longest)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    for axis in axes.flat[len(found):]:
        axis.set_visible(False)
    for i, (axis, (title, rows)) in enumerate(zip(axes.flat, found)):
        labels, values, ours = zip(*rows)
        drawn = axis.barh(range(len(rows)), values, color=[OURS if mine else THEIRS for mine in ours])
        axis.bar_label(drawn, [f"{v:.3g}" for v in values], padding=2)
        axis.set_yticks(range(len(rows)), labels)
        axis.set_ylim(longest[i // columns] - 0.5, -0.5)  # bars of one thickness in all panels, first row on top
        axis.set_xlim(0, 1.2 * max(values))
        axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
        axis.spines[:].set_visible(False)
        axis.set_xticks([])
        axis.tick_params(left=False)
    figure.supxlabel(note, fontsize=6.5, color="#475569", x=0.01, ha="left", linespacing=1.4)
    figure.canvas.draw()
    picture = Image.frombytes("RGBA", figure.canvas.get_width_height(), bytes(figure.canvas.buffer_rgba()))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    # A palette of 64 colours, and nothing in the file but the picture: small, and the same bytes every time.
    picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(out, format="PNG", optimize=True)
    print(f"written: {out}")


def main():
    arguments = parse()
    inference, training = ([read(path) for path in paths] for paths in (arguments.inference, arguments.training))
    draw(panels(inference, training), caption(inference + training), arguments.out)


if __name__ == "__main__":
    main()
