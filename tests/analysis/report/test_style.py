import matplotlib
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.report import style


def test_themed_svg_has_variables_unique_ids_and_no_size() -> None:
    figure, (axes,) = style.new_figure(2.0)
    axes.plot([0, 1], [0, 1], color=style.BLUE, marker="o")
    svg = style.svg_text(figure)
    assert style.BLUE in svg
    themed = style.themed_svg(svg, "one", "A &amp; B")
    assert style.BLUE not in themed
    assert "var(--blue)" in themed
    assert 'aria-label="A &amp; B"' in themed
    head = themed.split(">", 1)[0]
    assert "viewBox" in head
    assert "width=" not in head
    ids = [part.split('"', 1)[0] for part in themed.split(' id="')[1:]]
    assert ids
    assert all(i.startswith("one-") for i in ids)
    links = [part.split(")", 1)[0] for part in themed.split("url(#")[1:]]
    links += [part.split('"', 1)[0] for part in themed.split('href="#')[1:]]
    assert links
    assert set(links) <= set(ids)
    assert style.standalone_svg(svg).startswith('<?xml version="1.0"')
    with matplotlib.rc_context(style.RC):
        assert style.svg_text(figure) == style.svg_text(figure)  # no date, no random ids


def test_widths_are_ordered_from_dark_to_light() -> None:
    colours = style.width_colours([0.5, 0.125, 0.25])
    assert list(colours) == [0.125, 0.25, 0.5]
    assert style.text_on(colours[0.125]) == "#fefefe"
    assert style.text_on(colours[0.5]) == "#000000"
    assert len(style.width_colours([0.25])) == 1


def test_labels_do_not_cover_each_other_and_stay_inside() -> None:
    figure, (axes,) = style.new_figure(3.5)
    spots = [(0.5 + 0.01 * i, 0.5 + 0.005 * i) for i in range(5)] + [(0.0, 0.0), (1.0, 1.0)]
    axes.scatter(*zip(*spots, strict=True))
    style.place_labels(axes, [(x, y, f"pick {i}", style.GREEN) for i, (x, y) in enumerate(spots)], spots)
    figure.canvas.draw()
    boxes = []
    for note in axes.texts:
        boxes.append(Text.get_window_extent(note))
    assert len(boxes) == 7
    for i, box in enumerate(boxes):
        assert not any(Bbox.intersection(box, other) for other in boxes[i + 1 :])
        frame = axes.get_window_extent()
        assert frame.x0 - 1 <= box.x0
        assert box.x1 <= frame.x1 + 4
