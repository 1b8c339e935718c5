"""The page of every key of ``params.yaml``: type, default and what it is, as the classes of the configuration say."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from mkdocs.exceptions import PluginError
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rglcd.config import sections

_HEAD = """\
# Configuration

`params.yaml` says what is computed. `rglcd config use PRESET` writes it with every value spelled out, `rglcd config set KEY=VALUE` changes
one value, and `--set KEY=VALUE` changes it for one command. A key that no section knows is refused, with the nearest that there is.
A key without a default must be given: every [preset](presets.md) gives it. Where a value has a `kind`, the kind decides which further keys
there are; each kind has a table of its own.
"""

_MISSING = object()


@dataclass(frozen=True)
class _Key:
    name: str
    annotation: Any
    default: Any
    about: str
    bounds: tuple[Any, ...] = ()


def configuration_page() -> str:
    """All sections, in the order of the file."""
    parts, shared = [_HEAD], list[type]()
    for key in _keys_of(sections.Sections):
        if key.name == "preset":
            continue
        parts.append(f"## {key.name}\n")
        kinds = list(_classes_in(key.annotation))
        parts += [part for kind in kinds for part in _tables(kind, key.name, 3 if len(kinds) > 1 else None, shared)]
    for kind in shared:
        parts += [f"## {kind.__name__}\n", *_tables(kind, "", None, shared)]
    return "\n".join(parts)


def _tables(kind: type, path: str, level: int | None, shared: list[type]) -> Iterator[str]:
    """The table of ``kind`` at ``path``, and below it those of what its keys may be; ``shared`` collects what has a table of its own."""
    if level is not None:
        yield f"{'#' * min(level, 5)} {path}, kind {_kinds_of(kind)}\n"
    yield f"{_prose(inspect.getdoc(kind) or '')}\n"
    keys = [key for key in _keys_of(kind) if key.name != "kind" or not _kinds_of(kind)]
    rows = [f"| `{key.name}` | {_words(key.annotation, key.bounds)} | {_default(key.default)} | {_cell(key.about)} |" for key in keys]
    if rows:
        yield "\n".join(["| key | type | default | what it is |", "|---|---|---|---|", *rows, ""])
    for key in keys:
        name = f"{path}.{key.name}" if not _is_named_by_user(key.annotation) else f"{path}.{key.name}.NAME"
        for child in _classes_in(key.annotation):
            if _is_shared(child):
                shared += [] if child in shared else [child]
            else:
                yield from _tables(child, name, (level or 2) + 1, shared)


def _keys_of(kind: type) -> list[_Key]:
    texts = _texts_of(kind)
    if issubclass(kind, BaseModel):
        keys = [
            _Key(name, field.annotation, _default_of(field), texts.get(name, ""), tuple(field.metadata))
            for name, field in kind.model_fields.items()
        ]
    else:
        hints = _hints(kind)
        keys = [_Key(field.name, hints[field.name], _plain_default(field), texts.get(field.name, "")) for field in dataclasses.fields(kind)]
    keys = [dataclasses.replace(key, about=key.about or _of_its_kinds(key)) for key in keys]
    silent = [
        key.name
        for key in keys
        if not key.about and not (key.name == "kind" and _kinds_of(kind)) and key.name not in {*sections.Sections.model_fields}
    ]
    if silent:
        raise PluginError(f"{kind.__module__}.{kind.__name__}: no docstring says what {', '.join(silent)} is")
    return keys


def _of_its_kinds(key: _Key) -> str:
    """Of a key without a text of its own: where to look."""
    kinds = list(_classes_in(key.annotation))
    if any(_kinds_of(kind) for kind in kinds):
        return "Below, by kind."
    return (inspect.getdoc(kinds[0]) or "").split("\n\n", 1)[0] if kinds else ""


def _hints(kind: type) -> dict[str, Any]:
    return inspect.get_annotations(kind, eval_str=True)


def _default_of(field: FieldInfo) -> Any:
    return _MISSING if field.default is PydanticUndefined else field.default


def _plain_default(field: "dataclasses.Field[Any]") -> Any:
    return _MISSING if field.default is dataclasses.MISSING else field.default


# --- what the source says ------------------------------------------------------------------------


@cache
def _texts_of(kind: type) -> Mapping[str, str]:
    """The text below each field, or below the name of its type, in the order of inheritance."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if not parent.__module__.startswith("rglcd."):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        assert isinstance(body, ast.ClassDef)
        found |= _below_names(body.body)
    for name in _names(kind):
        if name not in found and (alias := _alias(kind, name)):
            found[name] = alias
    return found


def _names(kind: type) -> list[str]:
    return list(kind.model_fields) if issubclass(kind, BaseModel) else [field.name for field in dataclasses.fields(kind)]


def _below_names(body: list[ast.stmt]) -> dict[str, str]:
    """Names that are assigned or annotated, with the string that follows."""
    found = {}
    for statement, following in pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found


def _written_annotation(kind: type, name: str) -> str:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.target.id == name:
            return ast.unparse(statement.annotation)
    return ""


@cache
def _aliases(module: str) -> Mapping[str, str]:
    return _below_names(ast.parse(inspect.getsource(sys.modules[module])).body)


def _alias(kind: type, name: str) -> str:
    """What is said of the type that the field is annotated with, where that has a name of its own."""
    known = {text: said for module in (kind.__module__, "rglcd.recipe", "rglcd.config.base") for text, said in _aliases(module).items()}
    words = re.findall(r"\w+", _written_annotation(kind, name))
    return next((known[word] for word in words if word in known), "")


# --- types and values in words -------------------------------------------------------------------


def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Without ``Annotated``, and what that held."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        deeper, more = _parts(inner)
        return deeper, (*extras, *more)
    return annotation, ()


def _classes_in(annotation: Any) -> Iterator[type]:
    """The sections and choices that a value of this type may be, each once."""
    inner, _ = _parts(annotation)
    if isinstance(inner, type) and (issubclass(inner, BaseModel) or dataclasses.is_dataclass(inner)):
        yield inner
        return
    seen = []
    for argument in get_args(inner):
        for kind in _classes_in(argument):
            if kind not in seen:
                seen.append(kind)
                yield kind


def _is_shared(kind: type) -> bool:
    """Whether several keys may have it: its table stands once, at the end."""
    return not _kinds_of(kind)


def _is_named_by_user(annotation: Any) -> bool:
    inner, _ = _parts(annotation)
    return get_origin(inner) is dict


def _kinds_of(kind: type) -> str:
    annotation = (kind.model_fields["kind"].annotation if "kind" in kind.model_fields else None) if issubclass(kind, BaseModel) else None
    if annotation is None and dataclasses.is_dataclass(kind):
        annotation = _hints(kind).get("kind")
    return ", ".join(f"`{name}`" for name in get_args(annotation)) if get_origin(annotation) is Literal else ""


def _words(annotation: Any, bounds: tuple[Any, ...] = ()) -> str:
    inner, extras = _parts(annotation)
    limits = _limits((*extras, *bounds))
    origin, arguments = get_origin(inner), get_args(inner)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        named = [_words(one) for one in arguments if one is not type(None)]
        if all(word.startswith("kind ") for word in named):
            named = ["kind " + ", ".join(word.removeprefix("kind ") for word in named)]
        return " or ".join([*dict.fromkeys(named), *(["null"] if type(None) in arguments else [])])
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_words(arguments[0])}"
        return f"list of {len(arguments)}: {_words(arguments[0])}{limits}"
    if origin is dict:
        return f"mapping of names to {_words(arguments[1])}"
    if isinstance(inner, type) and (issubclass(inner, BaseModel) or dataclasses.is_dataclass(inner)):
        kinds = _kinds_of(inner)
        return f"kind {kinds}" if kinds else f"[{inner.__name__}](#{inner.__name__.lower()})"
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(inner, "value")
    return plain + limits


def _limits(extras: tuple[Any, ...]) -> str:
    signs = {
        annotated_types.Gt: (">", "gt"),
        annotated_types.Ge: ("≥", "ge"),
        annotated_types.Lt: ("<", "lt"),
        annotated_types.Le: ("≤", "le"),
    }
    found = []
    for extra in extras:
        for one in extra.metadata if isinstance(extra, FieldInfo) else (extra,):
            if type(one) in signs:
                sign, name = signs[type(one)]
                value = getattr(one, name)
                found.append(f"{sign} {'2^63' if value == 2**63 else value}")
            elif isinstance(one, annotated_types.MultipleOf):
                found.append(f"a multiple of {one.multiple_of}")
    return f" {' and '.join(found)}" if found else ""


def _default(value: Any) -> str:
    if value is _MISSING:
        return "—"
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return f"kind `{value.kind}`"
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    return f"`{text}`"


def _prose(text: str) -> str:
    text = re.sub(r":(?:class|func|data|mod|meth|attr):`", "`", text)
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(_prose(text).split()).replace("|", "\\|")
