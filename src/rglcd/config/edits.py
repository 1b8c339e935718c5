"""``params.yaml`` as a file that people edit: one value changed in place, and what differs from what `config use` wrote.

PyYAML says where a value stands, and its text alone is replaced: ruamel.yaml keeps comments too, but writes null and long lines anew.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rglcd.config.load import dump, load_preset, mapping_in, overridden, preset_names, resolve
from rglcd.config.root import Config
from rglcd.errors import InputError

_WRITTEN_BY = re.compile(r"# The configuration in force\. Written by `(rglcd config use [^\n]*)`; edit freely, every key is checked\.\n")


def with_values(text: str, overrides: Sequence[str], *, where: str) -> tuple[str, Config]:
    """The YAML ``text`` with every ``section.key=value`` of ``overrides``, and the configuration that it now is.

    A value is written as the configuration holds it: a source with its every key, a list as one. Raises :class:`InputError` for
    text, keys or values that are refused.
    """
    asked = text
    for override in overrides:
        asked = changed_in_place(asked, override, where=where)
    config = resolve(mapping_in(asked, where=where), where=where)
    values = config.model_dump(mode="json")
    for override in overrides:
        path = override.partition("=")[0]
        text = changed_in_place(text, f"{path}={_flow(_at(values, path))}", where=where)
    return text, config


def changed_in_place(text: str, override: str, *, where: str) -> str:
    """The YAML ``text`` with ``section.key=value``, everything else as it was, comments too; not validated.

    A comment within a value that is replaced goes with it. Raises :class:`InputError` where the text cannot be changed so: an
    alias, say.
    """
    before = mapping_in(text, where=where)
    wanted = overridden(before, override)
    path, _, given = override.partition("=")
    keys, node = _deepest(yaml.compose(text), path.split("."))
    value: Any = wanted
    for key in keys:
        value = value[key]
    spelled = [given] if keys == path.split(".") else []
    if not keys:
        tries = [_with_new_key(text, wanted, before)]
    else:
        block = [_replaced_by_lines(text, node, value)] if _is_block(node) and value else []
        tries = block + [_replaced(text, node, new) for new in (*spelled, _flow(value))]
    for changed in tries:
        try:
            if yaml.safe_load(changed) == wanted:
                return changed
        except yaml.YAMLError:
            pass
    raise InputError(f"{where}: {path} cannot be changed in place; change it by hand")


def edits_in(text: str, *, where: str) -> list[str]:
    """What in ``text`` is not as `rglcd config use` wrote it, a few words each; empty if nothing would be lost with it."""
    written = _WRITTEN_BY.match(text)
    words = shlex.split(written[1]) if written else []
    try:
        values = mapping_in(text, where=where)
        preset = words[3] if words else str(values["preset"])
        overrides = words[5::2]
        if preset not in preset_names():
            return [f"it is of no preset that there is ({preset})"]
        config = load_preset(preset, overrides=overrides)
        # A key that is left out has its default: an earlier version wrote the file, which did not know it.
        filled = resolve(values, where=where).model_dump(mode="json")
    except (KeyError, InputError):
        return ["it cannot be read"]
    if text == dump(config, overrides=overrides):
        return []
    known = config.model_dump(mode="json")
    differing = [f"{key} is {_flow(_at(filled, key))}, was {_flow(_at(known, key))}" for key in _differing(filled, known)]
    _, _, written_lines = text.partition("\n")
    return differing or (["its comments"] if "#" in written_lines else [])


def _deepest(root: Any, path: Sequence[str]) -> tuple[list[str], Any]:
    """How far ``path`` leads in the document, and the node there."""
    node, keys = root, list[str]()
    for wanted in path:
        children = {key.value: child for key, child in node.value} if isinstance(node, yaml.MappingNode) else {}
        if wanted not in children:
            break
        node = children[wanted]
        keys.append(wanted)
    return keys, node


def _replaced(text: str, node: Any, new: str) -> str:
    start, end = node.start_mark.index, _end(node)
    if _is_block(node):
        return f"{text[:start].rstrip()} {new}{text[end:]}"
    before = text[:start]
    return f"{before}{'' if before.endswith((' ', '[', '{', chr(10))) else ' '}{new}{text[end:]}"


def _is_block(node: Any) -> bool:
    """Whether the node's entries stand on lines of their own."""
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _replaced_by_lines(text: str, node: Any, value: Any) -> str:
    """The node's entries replaced by those of ``value``, as far in as they stood."""
    lines = yaml.safe_dump(value, sort_keys=False, width=1 << 20).rstrip().replace("\n", "\n" + " " * node.start_mark.column)
    return f"{text[: node.start_mark.index]}{lines}{text[_end(node) :]}"


def _with_new_key(text: str, wanted: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    (key,) = wanted.keys() - before.keys()
    return f"{text.rstrip()}\n{key}: {_flow(wanted[key])}\n"


def _end(node: Any) -> int:
    """Where the node's text ends: a block's own mark stands behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 20).removesuffix("...\n").strip()


def _differing(values: Any, known: Any, at: str = "") -> list[str]:
    """The keys at which two nested mappings differ, dotted."""
    if not (isinstance(values, Mapping) and isinstance(known, Mapping)) or values.get("kind") != known.get("kind"):
        return [at] if values != known else []
    keys = [*known, *(key for key in values if key not in known)]
    return [name for key in keys for name in _differing(values.get(key), known.get(key), f"{at}.{key}" if at else str(key))]


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
