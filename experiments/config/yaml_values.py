"""YAML as configs have it: decimal numbers as they are written, each key once, and no more values than were written.

YAML 1.1, which PyYAML reads, takes 010 for 8, 1:30 for 90 and 0x10 for 16, and leaves 1e-3 a text; a zero-padded job
number then is another seed. Here digits are a decimal number, whatever they begin with, and what is no decimal number
is a text, which the schema refuses where it wants a number.
"""

import itertools
import math
import re
from typing import Any

import yaml

MOST = 10_000  # values of a file, those of aliases counted where they are used; a whole config has 150


def parse(text: str) -> Any:
    """The values of a YAML text: dicts, lists, numbers, truth values, texts and None, none of them shared.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: It is not such a text.
    """
    return _unshared(yaml.load(text, _Loader))


def text(values: Any) -> str:
    """Values as a YAML text that `parse`, and any other reader, makes the same of."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def parse_word(word: str) -> Any:
    """The value of one word of a command line.

    Raises:
        ValueError: It is not a YAML value.
    """
    try:
        return parse(word)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _unshared(value: Any) -> Any:
    """The value with a copy of its own wherever an alias stood: what changes one changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """Plain YAML with decimal numbers, which refuses a key given twice, other types, and aliases without end."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        # A few lines of aliases to aliases can stand for billions of values: counted before any is made.
        if node is not None and _size(node, {}) > MOST:
            problem = f"more than {MOST} values, those of aliases counted; write out what is needed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            # PyYAML keeps the last of equal keys without a word.
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} is given twice", problem_mark=key.start_mark)
            seen.add(name)
            # Keys are names: `on` is no truth value here, and what is said of it is what was written.
            if isinstance(key, yaml.ScalarNode) and key.tag != _TAG + "merge":
                key.tag = _TAG + "str"
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int | float | bool:
        """A number or truth value, which an explicit tag may ask for where there is none."""
        kind, text = node.tag.removeprefix(_TAG), self.construct_scalar(node)
        if not _PLAIN[kind].match(text):
            raise yaml.MarkedYAMLError(problem=f"{text!r} is no decimal {kind}", problem_mark=node.start_mark)
        if kind == "bool":
            return self.bool_values[text.lower()]
        return int(text) if kind == "int" else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which also quotes texts that are numbers here but not to it: 08 and 1e3, names of folders perhaps."""


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """How many values a node stands for, infinity where it is part of itself; `sizes` are those known by identity."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        # Until its children are counted: what meets the node meanwhile lies inside it.
        sizes[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.SequenceNode) else itertools.chain(*node.value)
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]


_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "int": re.compile(r"[-+]?[0-9]+(_[0-9]+)*\Z"),
    "float": re.compile(
        r"([-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    "bool": re.compile(r"(yes|no|true|false|on|off)\Z", re.IGNORECASE),
}
_KEPT = ("null", "str", "seq", "map")  # as PyYAML has them; dates, sets and binaries are no values of a config
_RESOLVED = ("bool", "null", "merge")
# New dicts, since those of SafeLoader belong to all users of PyYAML in the process.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, regexp) for tag, regexp in rules if tag.removeprefix(_TAG) in _RESOLVED]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _KEPT
}
# Resolvers are looked up by the first character of a scalar.
for _name in ("int", "float"):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, _PLAIN[_name], list("-+.0123456789"))
for _name in _PLAIN:
    _Loader.add_constructor(_TAG + _name, _Loader.construct_decimal)
