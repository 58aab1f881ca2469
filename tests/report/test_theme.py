"""The report's colours can be read: text and marks, in light and dark."""

import pytest

from tune_softmax.report import theme
from tune_softmax.report.theme import DARK, LIGHT, contrast, template


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("#000000", "#ffffff", 21), ("#ffffff", "#ffffff", 1), ("#777777", "#ffffff", 4.478)],
)
def test_contrast_is_that_of_wcag(one, other, expected):
    """Black on white has 21, and the well-known grey that just fails has 4.48."""
    assert contrast(one, other) == pytest.approx(expected, abs=0.001)
    assert contrast(other, one) == contrast(one, other)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "accent"])
def test_text_has_a_contrast_of_four_and_a_half(palette, name):
    """On the page and on what stands apart from it (WCAG 2.2, 1.4.3)."""
    for behind in (palette.background, palette.surface):
        assert contrast(getattr(palette, name), behind) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["BLUE", "VERMILION", "GREEN", "PURPLE", "GREY"])
def test_marks_have_a_contrast_of_three(palette, name):
    """One colour serves both modes (WCAG 2.2, 1.4.11)."""
    assert contrast(getattr(theme, name), palette.background) >= 3


@pytest.mark.parametrize(("mode", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_a_template_takes_its_palette(mode, palette):
    """Text and axes of a figure have the colours of the page around it."""
    layout = template(mode)["layout"]
    assert layout["font"]["color"] == palette.ink
    assert layout["xaxis"]["tickfont"]["color"] == palette.muted
