"""YAML as far as recipes need it: plain values in small files, every key once, nothing that unfolds or runs."""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS = 64 * 1024
DEEPEST = 8
LARGEST_NUMBER = 2**63


class _Loader(yaml.SafeLoader):
    """SafeLoader without anchors, tags, merge keys, repeated keys, deep nesting and numbers of thousands of digits."""

    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:  # "billion laughs": a few lines that unfold to gigabytes
            raise ValueError(f"line {line} has the anchor or alias {event.anchor[:40]!r}: write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line} has the tag {event.tag[:40]!r}: write the plain value")
        if self.depth == DEEPEST:
            raise ValueError(f"line {line} is nested more than {DEEPEST} deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise ValueError(f"line {line} has a merge key (<<): write the values out")
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {line} has a key that is not a word")
            if key.value in first:
                raise ValueError(f"{key.value[:40]!r} is there twice, in lines {first[key.value]} and {line}")
            first[key.value] = line
        return node

    def construct_yaml_int(self, node):
        number = super().construct_yaml_int(node)
        if abs(number) >= LARGEST_NUMBER:
            raise ValueError(f"line {node.start_mark.line + 1} has a number of more than 63 bits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str) -> Any:
    """The value of a YAML text. ValueError says in one sentence, without a full stop, why it cannot be taken."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ArithmeticError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
