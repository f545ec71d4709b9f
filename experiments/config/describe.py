"""The keys of a config as its schema defines them: their names, and what their values must be, in words."""

from typing import Any

import yaml

from experiments.config.schema import Config
from experiments.foundation.functions import PATTERN

Rule = dict[str, Any]  # a JSON schema
SCHEMA: Rule = Config.model_json_schema()


def resolve(rule: Rule) -> Rule:
    """The schema of a section itself, where `rule` refers to it; all variants in one, where there are several."""
    if "oneOf" in rule:
        return {"description": rule["description"], "properties": _merged(rule)}
    target: Rule = SCHEMA["$defs"][rule["$ref"].rsplit("/", 1)[1]] if "$ref" in rule else rule
    return target


def variant(rule: Rule, tag: object) -> Rule | None:
    """The schema of one variant of a section, None if there is none of this name."""
    target: Rule | None = rule.get("discriminator", {}).get("mapping", {}).get(tag)
    return target and {"$ref": target}


def _merged(union: Rule) -> dict[str, Rule]:
    """Every key that a variant of a section has, with what any of them takes."""
    rules_by_tag: dict[str, dict[str, Rule]] = {}
    for tag, reference in union["discriminator"]["mapping"].items():
        for name, rule in resolve({"$ref": reference})["properties"].items():
            rules_by_tag.setdefault(name, {})[tag] = rule
    merged: dict[str, Rule] = {}
    for name, rules in rules_by_tag.items():
        described = [f"{tag}: {_described(rule)}" for tag, rule in rules.items() if "description" in rule]
        # Variants share names, such as train_points: an option takes what any of them does.
        choices: list[Rule] = []
        for rule in rules.values():
            choices += [choice for choice in rule.get("anyOf", [rule]) if choice not in choices]
        merged[name] = {"anyOf": choices, "description": "; ".join(described)}
    tags = list(union["discriminator"]["mapping"])
    merged[union["discriminator"]["propertyName"]] = {"enum": tags, "description": "what to train"}
    return merged


def _described(rule: Rule) -> str:
    return rule["description"] + (f" (default {words(rule['default'])})" if "default" in rule else "")


def fields(rule: Rule | None = None, prefix: str = "") -> dict[str, Rule]:
    """Every key that holds a value, dotted, with its schema."""
    rules: dict[str, Rule] = {}
    for name, child in (rule or SCHEMA)["properties"].items():
        if "properties" in resolve(child):
            rules |= fields(resolve(child), f"{prefix}{name}.")
        else:
            rules[prefix + name] = child
    return rules


def flag(key: str) -> str:
    """The command-line option of a dotted key."""
    return "--" + key.replace("_", "-")


def words(value: object) -> str:
    """A value as one writes it on the command line."""
    items = value if isinstance(value, list) else [value]
    # PyYAML ends a document that is one plain scalar with a line of three dots.
    return " ".join(yaml.safe_dump(item).removesuffix("...\n").strip() for item in items)


def show(value: object) -> str:
    """A value as it was given, shortened where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def expected(rule: Rule) -> str:
    """What a value must be."""
    rule = resolve(rule)
    if "properties" in rule:
        return "a section with the keys " + ", ".join(rule["properties"])
    if "anyOf" in rule:
        return " or ".join(expected(choice) for choice in rule["anyOf"])
    if "enum" in rule:
        return " or ".join(rule["enum"])
    if "const" in rule:
        return str(rule["const"])
    if rule["type"] == "array":
        fewest, most = rule.get("minItems", 0), rule.get("maxItems")
        return f"a list of {fewest if fewest == most else f'at least {fewest}'}, each {expected(rule['items'])}"
    if rule.get("pattern") == PATTERN:
        return "module:function"
    if "pattern" in rule:
        return "letters, digits, '.', '_' and '-', the first a letter or digit"
    kinds = {
        "integer": "an integer",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {rule[bound]}" for bound, sign in bounds.items() if bound in rule]
    return " ".join([kinds[rule["type"]], " and ".join(limits)]).strip()
