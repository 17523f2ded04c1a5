"""An SVG drawing as a PNG picture, by resvg (package resvg_py), which uses the fonts of the machine."""

from __future__ import annotations

#: Pixels for each unit of the drawing, so that text stays sharp on a slide.
ZOOM = 2.0
#: Fonts for "sans-serif", the first that the machine has.
FONTS = ("DejaVu Sans", "Liberation Sans", "Noto Sans", "Arial", "Helvetica", "Roboto", "Cantarell", "Open Sans")


def png(svg: str) -> bytes:
    """Return the drawing ``svg`` as a PNG file on its own, light background.

    Raises:
        ModuleNotFoundError: resvg_py is not installed.
        LookupError: The machine has none of ``FONTS``.
    """
    from resvg_py import svg_to_bytes

    return svg_to_bytes(svg_string=svg, sans_serif_family=_font(), zoom=ZOOM)


def _font() -> str:
    """Return the first of ``FONTS`` that draws something; resvg leaves the text out where a font is missing."""
    from resvg_py import svg_to_bytes

    word = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20" font-family="sans-serif">'
        '<text y="15">{}</text></svg>'
    )
    nothing = svg_to_bytes(svg_string=word.format(""))
    for font in FONTS:
        if svg_to_bytes(svg_string=word.format("m"), sans_serif_family=font) != nothing:
            return font
    raise LookupError("none of these fonts is installed: " + ", ".join(FONTS))
