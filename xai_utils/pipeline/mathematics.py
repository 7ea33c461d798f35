"""The Markdown of a page: LaTeX becomes MathML while the page is made, so a browser needs no script and no network.

JupyterLab draws the same LaTeX itself. Of a long source the page shows the first lines, and the rest when asked.
"""

import html
import re
from xml.etree.ElementTree import tostring

from jinja2 import pass_context
from latex2mathml import converter
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

NUMBER = re.compile(r"\\tag\{([^{}]*)\}")  # of an equation, as its paper has it
SHOWN, FOLDED = 6, 4  # lines of a source that stand open, and how many more there must be for a fold


def mathml(latex: str, *, display: str = "inline") -> str:
    """`latex` as a <math> element, "inline" or a "block"; a text that cannot be read as LaTeX stays as it is, escaped.

    What stands in it is never markup: a class name that looks like a tag is shown.
    """
    try:
        element = converter.convert_to_element(latex, display=display)
    except Exception:  # latex2mathml has no common class of errors, and lets through what its parser stumbles over
        return f"<code>{html.escape(latex)}</code>"
    del element.attrib["xmlns"]  # HTML knows the element
    text = tostring(element, encoding="unicode")  # its own convert() would turn &lt; into a bracket again
    return re.sub(r"&amp;(#x[0-9A-Fa-f]+;)", r"&\1", text)


def equation(latex: str) -> str:
    r"""A displayed equation, with its number of \tag{…} at the right."""
    number = NUMBER.search(latex)
    shown = mathml(NUMBER.sub("", latex).strip(), display="block")
    return f'<span class="equation">{shown}<span>{f"({html.escape(number[1])})" if number else ""}</span></span>'


def folded(source: str) -> str:
    """A highlighted source (HTML) with what follows its first lines in a fold; a short one as it is.

    It may be cut at any line: the highlighter closes at a line's end what it has opened.
    """
    found = re.fullmatch(r"(.*?<pre>)(.*?)(\n?</pre>.*)", source, re.DOTALL)
    lines = found[2].split("\n") if found else []
    if len(lines) < SHOWN + FOLDED:
        return source
    first, rest = "\n".join(lines[:SHOWN]), "\n".join(lines[SHOWN:])
    told = f"<summary>{len(lines) - SHOWN} more lines</summary>"
    return f"{found[1]}{first}</pre><details>{told}<pre>{rest}{found[3].replace('</pre>', '</pre></details>', 1)}"


class _Renderer(IPythonRenderer):
    def block_math(self, body):
        return equation(body)

    def inline_math(self, body):
        return mathml(body)

    def block_code(self, code, info=None):
        return folded(super().block_code(code, info))


class Exporter(HTMLExporter):
    """nbconvert's exporter, whose Markdown has MathML where it had LaTeX."""

    @pass_context
    def markdown2html(self, context, source):
        renderer = _Renderer(escape=False, anchor_link_text=self.anchor_link_text, **self.lexer_options)
        return MarkdownWithMath(renderer=renderer).render(source)
