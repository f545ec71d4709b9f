"""Writes the API pages from what `jaxmgrit` exports, and makes `jm.name` in prose a link to them.

The pages are grouped by the folder a name is defined in, so that a new public name is documented without further ado.
"""

import re
from collections import defaultdict
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType

from docutils import nodes
from sphinx.addnodes import pending_xref

import jaxmgrit as jm
from jaxmgrit.training.trainer import Trainer

API = Path(__file__).parents[1] / "api"

# Folder or module of the library -> page and its title; the first that fits.
PAGES = {
    "jaxmgrit.adapters": ("adapters", "Adapters"),
    "jaxmgrit.analysis": ("analysis", "Analysis"),
    "jaxmgrit.backend": ("backends", "Backends"),
    "jaxmgrit.solvers": ("solvers", "Solvers"),
    "jaxmgrit.training": ("training", "Training"),
    "jaxmgrit": ("verbs", "Propagate, solve, differentiate"),
}
NAMES = [name for name in jm.__all__ if not isinstance(getattr(jm, name), ModuleType)]  # modules are in MODULES
ORDER = ("verbs", "solvers", "training", "backends", "analysis", "adapters")

# Public modules, and the protocols that solvers, schedules and backends of one's own fulfil.
MODULES = {
    "control": ("jaxmgrit.analysis.control", "Control: when a gradient is too inexact"),
    "cost_model": ("jaxmgrit.analysis.cost_model", "Cost model: what a program does, counted"),
    "adapters": ("jaxmgrit.adapters", "Adapters"),
    "adapters_stack": ("jaxmgrit.adapters.stack", "Stacks of plain pytrees"),
    "adapters_nnx": ("jaxmgrit.adapters.nnx", "Stacks of Flax NNX"),
    "adapters_linen": ("jaxmgrit.adapters.linen", "Stacks of Flax linen"),
    "adapters_equinox": ("jaxmgrit.adapters.equinox", "Stacks of Equinox"),
    "solver_protocol": ("jaxmgrit.solvers.base", "What a solver is"),
    "schedule_protocol": ("jaxmgrit.training.schedules.base", "What a schedule is"),
    "backend_protocol": ("jaxmgrit.backend.base", "What a backend is"),
}

ABOUT = "Everything public is a name of `jaxmgrit`, imported as `jm`; the last pages are modules and protocols."

# Classes here fulfil a protocol, whose page describes their methods.
FULFIL = (
    "jaxmgrit.backend",
    "jaxmgrit.solvers",
    "jaxmgrit.training.schedules",
    "jaxmgrit.training.quasi_newton.hessian",
)


def write_pages() -> None:
    """Write `docs/api/*.md`; pages that have not changed keep their time."""
    groups = defaultdict(list)
    for name in NAMES:
        module = getattr(jm, name).__module__ or "jaxmgrit"
        groups[next(page for prefix, page in PAGES.items() if module.startswith(prefix))].append(name)
    pages = {}
    for page, title in sorted(groups, key=lambda pair: ORDER.index(pair[0])):
        names = sorted(groups[page, title], key=lambda name: (name[0].isupper(), name.lower()))
        pages[page] = _page(title, "\n".join(_entry(name) for name in names))
    for page, (module, title) in MODULES.items():
        # What a package offers is described on the pages of its modules.
        members = "" if page == "adapters" else "   :members:\n"
        pages[page] = _page(title, f".. automodule:: {module}\n{members}")
    contents = "\n".join(pages)
    pages["index"] = f"# API\n\n{ABOUT}\n\n```{{toctree}}\n{contents}\n```\n"
    API.mkdir(exist_ok=True)
    for old in API.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for page, text in pages.items():
        file = API / f"{page}.md"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def _page(title: str, directives: str) -> str:
    return f"# {title}\n\n```{{eval-rst}}\n{directives}\n```\n"


def _entry(name: str) -> str:
    value = getattr(jm, name)
    if isinstance(value, type):
        members = "" if is_dataclass(value) and value.__module__.startswith(FULFIL) else "   :members:\n"
        values = "   :undoc-members:\n" if issubclass(value, Enum) else ""
        # What trainers share is described with each of them.
        inherited = "   :inherited-members:\n" if issubclass(value, Trainer) else ""
        return f".. autoclass:: jaxmgrit.{name}\n{members}{inherited}{values}"
    return f".. auto{'function' if callable(value) else 'data'}:: jaxmgrit.{name}\n"


def mend_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`; make them the reStructuredText that says so."""
    text = "\n".join(lines)
    parts = re.split(r"((?:^ *>>> .*(?:\n(?! *\n| *$).*)*)|`[^`]+`)", text, flags=re.MULTILINE)
    lines[:] = "".join(_mended(part) for part in parts).split("\n")


def _mended(part: str) -> str:
    """An example as it is, code as a literal or a link, and in anything else no character with a meaning."""
    if part.lstrip().startswith(">>> "):
        return part
    if not part.startswith("`"):
        return re.sub(r"([|*])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", part)
    code = re.sub(r"\s+", " ", part[1:-1])
    name = code.removeprefix("jm.")
    role = f":py:obj:`{code} <jaxmgrit.{name}>`" if name in NAMES else f"``{code}``"
    return f"\\ {role}\\ "  # the ends of a role, also within a word


def skip_fields(app, what, name, obj, skip: bool, options) -> bool | None:
    """Fields of named tuples are listed in their class's docstring; Python's own `Alias for ...` says nothing."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def link_names(app, doctree: nodes.document) -> None:
    """Make literals `jm.name`, `jm.name(...)` references; one that is not public is then a broken reference."""
    for literal in list(doctree.findall(nodes.literal)):
        match = re.match(r"jm\.(\w+)", literal.astext())
        if match is None or isinstance(literal.parent, (pending_xref, nodes.reference)):
            continue
        link = pending_xref("", refdomain="py", reftype="obj", reftarget=f"jaxmgrit.{match[1]}", refexplicit=True)
        link["refdoc"] = app.env.docname
        literal.replace_self(link)
        link += literal


def setup(app) -> dict:
    """Sphinx calls this when it loads the extension."""
    write_pages()
    app.connect("autodoc-process-docstring", mend_docstring, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", link_names)
    return {"version": "1", "parallel_read_safe": True}
