"""What a package index, a citation manager and a reader of the changelog are told agrees with the package."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jaxmgrit as jm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_same_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jm.__version__)
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == jm.__version__
    assert f"\n## {jm.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_apache():
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in text and "Version 2.0, January 2004" in text
    assert (ROOT / "jaxmgrit" / "py.typed").exists()


def test_the_library_needs_jax_and_optax_only():
    assert [re.match(r"[\w-]+", need)[0] for need in PROJECT["dependencies"]] == ["jax", "optax"]


def test_a_package_index_shows_pictures_and_links(monkeypatch):
    interface = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)

    metadata = {"urls": PROJECT["urls"]}
    hook.Readme.update(SimpleNamespace(root=ROOT), metadata)
    addresses = re.findall(r"\]\(([^)]*)\)", metadata["readme"]["text"])
    raw = "https://raw.githubusercontent.com/jaxmgrit/jaxmgrit/main/"
    assert addresses and all(address.startswith(("https://", "http://", "#")) for address in addresses)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", metadata["readme"]["text"])
    assert pictures and all(picture.startswith(raw) for picture in pictures)
    assert all((ROOT / picture.removeprefix(raw)).is_file() for picture in pictures)
