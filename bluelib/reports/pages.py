"""The plain site: staged sources as HTML pages by nbconvert, with nothing that a page would have to fetch elsewhere.

Formulas become MathML, which browsers show without a script. Of MyST's Markdown there are: the figure directive,
targets ``(name)=``, references ``[](#name)`` and ``[](page.md)``, and citations ``[@key; @key]``, ``{cite:t}`key```.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import jinja2
import nbformat
import yaml
from bs4 import BeautifulSoup, NavigableString, Tag
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pybtex.database import parse_file
from pybtex.plugin import find_plugin
from pygments.formatters import HtmlFormatter

#: Code, but not the argument of a role such as {cite:t}.
_CODE = re.compile(r"(^```.*?^```|(?<!\})`[^`\n]+`)", re.M | re.S)
_FIGURE = re.compile(
    r"^:::\{figure\} (?P<src>\S+)\n(?P<options>(?::\w+:[^\n]*\n)*)\n?(?P<caption>.*?)^:::$", re.M | re.S
)
#: A font with what browsers need to set formulas, as the package ziamath has it (SIL Open Font License).
MATH_FONT = "STIXTwoMath-Regular.ttf"
_HEADINGS = ("h1", "h2", "h3", "h4")


@dataclass(frozen=True)
class Page:
    """A source of the site: its path in the repository, its title, and the group it has in the navigation."""

    path: str
    title: str
    group: str = ""


class Link(NamedTuple):
    """A link of the navigation."""

    href: str
    title: str


def write_pages(stage: Path, pages: Sequence[Page], site: Path) -> None:
    """Write the pages of ``stage`` into ``site``, with a style sheet and the files that they show or link to.

    Args:
        pages: the landing page first.

    Raises:
        ValueError: for a formula that cannot be converted, an unknown citation or reference, or an image that is
            missing, naming the page.
    """
    bibliography = Bibliography(stage / "docs" / "site" / "references.bib")
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("markdown2html", markdown_to_html)
    settings = yaml.safe_load((stage / "myst.yml").read_text(encoding="utf-8"))
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (stage / "docs" / "site" / "page.html").read_text(encoding="utf-8")
    )
    out = {page.path: _out(page.path, first=page is pages[0]) for page in pages}
    titles = {page.path: page.title for page in pages}
    bodies: dict[str, BeautifulSoup] = {}
    for page in pages:
        try:
            bodies[page.path] = _body(stage / page.path, exporter, bibliography)
        except ValueError as error:
            raise ValueError(f"{page.path}: {error}") from error
    names = {name: (path, text) for path, body in bodies.items() for name, text in _targets(body).items()}
    for number, page in enumerate(pages):
        body = bodies[page.path]
        _resolve_links(body, page.path, stage, site, out, titles, names)
        links = [Link(_relative(out[other.path], out[page.path]), other.title) for other in pages]
        groups = [
            {
                "name": group,
                "here": group == page.group,
                "links": [link for link, other in zip(links, pages, strict=True) if other.group == group],
            }
            for group in dict.fromkeys(other.group for other in pages)
        ]
        html = template.render(
            page=page,
            body=Markup(str(body)),
            site=settings["project"]["title"],
            first=number == 0,
            root="../" * out[page.path].count("/"),
            home=links[0].href,
            here=links[number].href,
            groups=groups,
            previous=links[number - 1] if number else None,
            next=links[number + 1] if number + 1 < len(links) else None,
        )
        target = site / out[page.path]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(html, encoding="utf-8")
    (site / "style.css").write_text(_style(stage), encoding="utf-8")
    shutil.copyfile(str(distribution("ziamath").locate_file(f"ziamath/fonts/{MATH_FONT}")), site / MATH_FONT)


def _out(path: str, first: bool) -> str:
    return "index.html" if first else posixpath.splitext(path)[0] + ".html"


def _relative(target: str, start: str) -> str:
    """The link from one page of the site to another."""
    return posixpath.relpath(target, posixpath.dirname(start) or ".")


def _style(stage: Path) -> str:
    """The style sheet with the colours of code, in light and in dark."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("friendly", "github-dark"))
    own = (stage / "docs" / "site" / "style.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


# --- a page's body -----------------------------------------------------------------


def _body(path: Path, exporter: HTMLExporter, bibliography: Bibliography) -> BeautifulSoup:
    """A Markdown file or a notebook as HTML; a Markdown file is a notebook of one cell."""
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
    else:
        cell = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": {"name": "python"}})
    cited: dict[str, None] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _outside_code(_figures(cell.source), lambda text: bibliography.cite(_anchors(text), cited))
        for output in cell.get("outputs", []):
            if "text/latex" in output.get("data", {}):
                output.data.setdefault("text/markdown", output.data["text/latex"])
    body = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    for table in body.find_all("table"):
        table.wrap(
            body.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "Table"})
        )
    for cell in body.find_all(("td", "th")):
        if len(cell.get_text()) < 24:
            cell["class"] = "short"
    for math in body.find_all("math", display="inline"):  # no line may begin with the comma after a formula
        after = math.next_sibling
        mark = re.match(r"[.,;:)?!]+", after) if isinstance(after, NavigableString) else None
        if mark:
            after.replace_with(after[mark.end() :])
            math.wrap(body.new_tag("span", attrs={"class": "together"})).append(mark[0])
    seen: set[str] = set()
    for heading in body.find_all(_HEADINGS):
        slug = re.sub(r"\W+", "-", heading.get_text().lower()).strip("-") or "section"
        while slug in seen:
            slug += "-again"
        seen.add(slug)
        heading["id"] = slug
    if cited:
        body.append(BeautifulSoup(bibliography.references(list(cited)), "html.parser"))
    return body


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    return "".join(part if i % 2 else change(part) for i, part in enumerate(_CODE.split(text)))


def _anchors(text: str) -> str:
    return re.sub(r"^\(([\w-]+)\)=$", r'<span class="target" id="\1"></span>\n', text, flags=re.M)


def _figures(text: str) -> str:
    """MyST's figure directives as HTML; blank lines make the caption Markdown."""
    numbers = iter(range(1, 1000))

    def figure(match: re.Match[str]) -> str:
        options = dict(re.findall(r":(\w+): *(.*)\n", match["options"]))
        if "alt" not in options:
            raise ValueError(f"figure {match['src']} has no :alt:")
        name = f"Figure {next(numbers)}"
        return (
            f'<figure id="{options.get("label", "")}" data-name="{name}">\n<img src="{match["src"]}" '
            f'alt="{escape(options["alt"])}">\n<figcaption>\n\n**{name}.** {match["caption"].strip()}\n\n'
            "</figcaption>\n</figure>\n"
        )

    return _FIGURE.sub(figure, text)


# --- formulas ----------------------------------------------------------------------


def markdown_to_html(source: str) -> str:
    """Markdown as notebooks have it, formulas as MathML."""
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        tag = re.search(r"\\tag\{([^{}]*)\}", body)
        formula = mathml(body.replace(tag[0], "") if tag else body, "block")
        number = f'<span class="tag">({escape(tag[1])})</span>' if tag else ""
        return f'<span class="formula">{formula}{number}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


#: What latex2mathml writes as identifiers and is an operator.
_OPERATORS = frozenset("⪰⪯≽≼")
#: What has its subscript below it in a displayed formula.
_LIMITS = frozenset(("min", "max", "sup", "inf", "lim"))
_SPACES = {"negativethinmathspace": "-0.167em"}


def mathml(tex: str, display: str) -> str:
    r"""A formula as MathML that browsers show (MathML Core), with what latex2mathml leaves undone.

    Raises:
        ValueError: for a command that is not known.
    """
    source = tex.strip().replace(":=", r"\coloneqq ")
    source = re.sub(r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}", source)
    try:
        math = BeautifulSoup(convert(source, display=display), "html.parser")
    except Exception as error:  # its parser has many
        raise ValueError(f"the formula {tex.strip()!r} cannot be converted: {error!r}") from error
    if "\\" in math.get_text():
        raise ValueError(f"the formula {tex.strip()!r} has a command that is not known: {math.get_text()!r}")
    for box in math.find_all("menclose", notation="box"):
        box.name, box.attrs = "mrow", {"class": "boxed"}
    for sign in math.find_all("mi"):
        if sign.get_text() in _OPERATORS:
            sign.name = "mo"
        elif "Α" <= sign.get_text() <= "Ω":  # capital Greek letters are upright, as in TeX
            sign["mathvariant"] = "normal"
    for prime in math.find_all("mi", string=re.compile("^[′″‴]$")):  # the sign is raised already
        exponent = prime if prime.parent.name == "msup" else prime.parent
        if exponent.parent.name == "msup" and exponent is exponent.parent.contents[1]:
            power, base = exponent.parent, exponent.parent.contents[0]
            base.wrap(math.new_tag("mrow")).append(prime)
            if exponent is prime:
                power.unwrap()
    for below in math.find_all("msub") if display == "block" else ():
        if below.contents[0].get_text() in _LIMITS:
            below.name = "munder"
    for word in math.find_all("mo", string=re.compile(r"^[a-z]{2,}$")):
        word["lspace"] = word["rspace"] = "0.167em"
    for bar in math.find_all("mo", string=["\u2016", "|"]):  # those of \left and \right have the attribute
        bar.attrs.setdefault("stretchy", "false")
    for space in math.find_all("mspace"):
        space["width"] = _SPACES.get(space["width"], space["width"])
    return str(math)


# --- citations, references, links --------------------------------------------------


class Bibliography:
    """The entries of a BibTeX file."""

    def __init__(self, path: Path):
        self.data = parse_file(str(path))

    def cite(self, text: str, cited: dict[str, None]) -> str:
        """Citations in Markdown as links to the references; their keys are added to ``cited``."""

        def link(key: str, form: str) -> str:
            if key not in self.data.entries:
                raise ValueError(f"no reference is called {key!r}; known: {', '.join(self.data.entries)}")
            cited.setdefault(key)
            entry = self.data.entries[key]
            names = [" ".join(person.last_names) for person in entry.persons["author"]]
            who = " & ".join(names) if len(names) <= 2 else f"{names[0]} et al."
            return f'<a href="#ref-{key}">{escape(form.format(who, entry.fields["year"]))}</a>'

        def keys(match: re.Match[str]) -> list[str]:
            return [key.strip(" @") for key in re.split("[;,]", match["keys"])]

        def parenthesis(match: re.Match[str]) -> str:
            return "(" + "; ".join(link(key, "{}, {}") for key in keys(match)) + ")"

        def sentence(match: re.Match[str]) -> str:
            return ", ".join(link(key, "{} ({})") for key in keys(match))

        text = re.sub(r"\[(?P<keys>@[\w:-]+(?:; *@[\w:-]+)*)\]", parenthesis, text)
        return re.sub(r"\{cite:t\}`(?P<keys>[^`]+)`", sentence, text)

    def references(self, keys: Sequence[str]) -> str:
        """The list of the references ``keys`` as HTML."""
        style = find_plugin("pybtex.style.formatting", "unsrt")()
        backend = find_plugin("pybtex.backends", "html")()
        entries = style.format_bibliography(self.data, keys)
        items = "\n".join(f'<li id="ref-{entry.key}">{entry.text.render(backend)}</li>' for entry in entries)
        return f'<section class="references"><h2 id="references">References</h2>\n<ul>\n{items}\n</ul></section>'


def _targets(body: BeautifulSoup) -> dict[str, str]:
    """What can be referred to by name: figures, and headings after a target."""
    found = {figure["id"]: figure["data-name"] for figure in body.find_all("figure", id=True)}
    for target in body.find_all("span", class_="target"):
        heading = target.find_next(_HEADINGS)
        found[target["id"]] = heading.get_text() if heading else target["id"]
    return found


def _resolve_links(
    body: BeautifulSoup,
    path: str,
    stage: Path,
    site: Path,
    out: dict[str, str],
    titles: dict[str, str],
    names: dict[str, tuple[str, str]],
) -> None:
    """Point links at the site's pages, copy files that are shown or linked to, and unlink what is not there."""
    here = out[path]

    def file(target: str) -> str | None:
        """The link to a staged file, which is copied."""
        relative = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if relative.startswith("..") or not (stage / relative).is_file():
            return None
        (site / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stage / relative, site / relative)
        return _relative(relative, here)

    links = body.find_all("a", href=True)
    for number, image in enumerate(body.find_all("img"), start=1):
        kind, comma, content = image["src"].partition(";base64,")
        if comma:
            name = f"{posixpath.splitext(here)[0]}_{number}.{kind.rpartition('/')[2].removesuffix('+xml')}"
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_bytes(b64decode(content))
            source: str | None = posixpath.basename(name)
        else:
            source = file(image["src"])
        if source is None:
            raise ValueError(f"{path}: image {image['src']} does not exist")
        image["src"] = source
        image.wrap(body.new_tag("a", href=source))
    for link in links:
        target, _, fragment = link["href"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        if not target:
            _refer(link, fragment, body, path, here, out, names)
            continue
        page = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if page in out:
            link["href"] = _relative(out[page], here) + (f"#{fragment}" if fragment else "")
            if not link.get_text():
                link.string = titles[page]
        elif href := file(target):
            link["href"] = href
        else:
            link.unwrap()


def _refer(
    link: Tag,
    name: str,
    body: BeautifulSoup,
    path: str,
    here: str,
    out: dict[str, str],
    names: dict[str, tuple[str, str]],
) -> None:
    """A reference by name, to this or another page; without a text it takes the target's."""
    if name in names:
        page, text = names[name]
        link["href"] = f"#{name}" if page == path else f"{_relative(out[page], here)}#{name}"
        if not link.get_text():
            link.string = text
    elif body.find(id=name) is None:
        raise ValueError(f"{path}: nothing is called {name!r}")
