"""How tables stand on a page: caption, permalink, real minus signs, Δ first; all by pandas' Styler.

Numbers of tables and figures are letters, counted by the style sheet (`book/_static/simo.css`): "Table 1" is
always the paper's.
"""

import re

from IPython.display import HTML, Markdown, display

# a hyphen before a number that is not part of a word, a date or a range
HYPHEN = re.compile(r"(?<![\w.-])-(?=[.\d])")
# for captions of tables that have any; of means, interrupted runs are no part
SECONDS = "Times are rough: other work ran beside."
MEAN_SECONDS = "Times are rough: other work ran beside; interrupted runs are left out."


def real_minus(text):
    """Text with minus signs before its numbers, where it has hyphens."""
    return HYPHEN.sub("−", text)


def say(text):
    """Display a computed sentence; nothing for an empty one, in whose place its object's name would stand."""
    if text:
        display(Markdown(text))


def seconds(value, digits=0):
    """Seconds as text; "interrupted" where a run that went on does not know them, NaN."""
    return f"{value:,.{digits}f}" if value == value else "interrupted"


def show(table, caption, name, corner="", index=True, classes="", escape="html"):
    """Display a table with a caption, a place to link to, and a header over its first column.

    Parameters
    ----------
    table : DataFrame
        Of text or numbers; floats are shown with sign and one decimal, what is missing as a dash. Columns
        about Δ are moved to the front, so that they stand beside the names on a narrow screen.
    caption : str
        What the table shows, in a sentence.
    name : str
        Its address on the page, where it is unique.
    corner : str
        Header of the index.
    index : bool
        Whether the index is shown.
    classes : str
        Of `book/_static/simo.css`, for what is aligned otherwise.
    escape : str or None
        None if cells and headers are HTML.
    """
    if table.index.nlevels > 1:
        table, index = table.reset_index(), False  # every column has its header then
        classes = f"pairs {classes}".strip()
    first = [column for column in table if "Δ" in str(column)]
    first = [*table.columns[: not index], *first]
    table = table[first + [column for column in table if column not in first]]
    above = [None] * (table.columns.nlevels - 1)
    link = f'<a class="headerlink" href="#{name}" title="Link to this table">#</a>'
    styler = table.rename_axis(index=None, columns=[corner, *above]).style
    styler = styler.format(_cell, na_rep="–", escape=escape)
    styler = styler.format_index(_header, axis="columns", escape=escape)
    styler = styler.format_index(_cell, axis="index", escape=escape)
    styler = styler.set_caption(f'<span class="caption-text">{caption} {link}</span>')
    if not index:
        styler = styler.hide(axis="index")
    text = styler.to_html(exclude_styles=True)  # without an identifier for every cell
    display(HTML(f'<div id="{name}" class="{f"results {classes}".strip()}">\n{text}</div>'))


def _cell(value):
    return real_minus(f"{value:+z.1f}" if isinstance(value, float) else str(value))


def _header(label):
    """A column's header: Δ with its index set low, and times called rough."""
    text = str(label).replace("Δ_MTL", "Δ<sub>MTL</sub>")
    return re.sub(r"^(seconds|minutes|hours)", r"rough \1", real_minus(text))


def over_seeds(count):
    """What a number or a line is: of one seed, or a mean."""
    return f"mean over {count} seeds" if count > 1 else "one seed"


def of_seeds(some, count):
    """On how many seeds something is so."""
    return f"{some} of {count} seeds" if count > 1 else "the only seed"
