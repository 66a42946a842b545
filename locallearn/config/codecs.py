"""The spelling of codecs: `int8`, `topk(0.1)`, or a list that composes, the wrapping ones first: `[delayed(1), int8]`.

A parsed codec is what `locallearn.codec.build` takes: ((name, arguments), ...), outermost first. Arguments that are the default are left
out at the end, so that each codec is spelled in one way, and shortly.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from locallearn.config.document import KeyPath
from locallearn.config.mistakes import Mistake, hint
from locallearn.config.schema import BAD, Reader

CodecSpec = tuple[tuple[str, tuple[Any, ...]], ...]

EXACT: CodecSpec = (("exact", ()),)

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def parse_codecs(reader: Reader, value: Any, path: KeyPath) -> dict[str, CodecSpec]:
    """The codecs of a run by message name, kind or `default`, which is always there; mistakes go to the reader."""
    if not isinstance(value, Mapping):
        reader.mistakes.append(Mistake(path, "value", "must be a mapping, such as {default: exact, error: int8}"))
        return {"default": EXACT}
    parsed = {str(key): parse_codec(reader, item, (*path, key)) for key, item in value.items()}
    return {"default": EXACT} | {key: spec for key, spec in parsed.items() if spec is not BAD}


def parse_codec(reader: Reader, value: Any, path: KeyPath) -> Any:
    """One codec, or BAD."""
    listed = isinstance(value, list | tuple)
    items = list(value) if listed else [value]
    if not items:
        reader.mistakes.append(Mistake(path, "value", "names no codec; write `exact` to send every bit"))
        return BAD
    places = [(*path, k) if listed else path for k in range(len(items))]
    calls = [_call(reader, item, place) for item, place in zip(items, places, strict=True)]
    if any(call is BAD for call in calls):
        return BAD
    for (name, _), place in zip(calls[:-1], places, strict=False):
        if not wraps(reader.catalog.codecs[name]):
            reader.mistakes.append(Mistake(place, "value", "wraps no other codec, so it must stand last"))
            return BAD
    return tuple(calls) if _fits(reader, calls, places) else BAD


def _fits(reader: Reader, calls: list[tuple[str, tuple[Any, ...]]], places: list[KeyPath]) -> bool:
    """Whether each codec takes the one after it."""
    codec: Any = None
    for (name, args), place in zip(reversed(calls), reversed(places), strict=True):
        factory = reader.catalog.codecs[name]
        inside = (reader.catalog.codecs["exact"]() if codec is None else codec,) if wraps(factory) else ()
        try:
            codec = factory(*inside, *args)
        except ValueError as error:
            reader.mistakes.append(Mistake(place, "value", str(error)))
            return False
    return True


def wraps(factory: Callable[..., Any]) -> bool:
    """Whether the codec wraps another: its first parameter is `inner`."""
    return next(iter(inspect.signature(factory).parameters), None) == "inner"


def spelled(spec: CodecSpec) -> str | list[str]:
    """The codec as it is written in YAML."""
    words = [name + (f"({', '.join(map(_word, args))})" if args else "") for name, args in spec]
    return words[0] if len(words) == 1 else words


def _word(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _call(reader: Reader, text: Any, path: KeyPath) -> Any:
    """(name, arguments) of `name` or `name(argument, ...)`, or BAD."""
    codecs = reader.catalog.codecs
    match = _CALL.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        how = "is no codec; write a name or name(argument), in quotes if there is a comma: [delayed(1), int8]"
        reader.mistakes.append(Mistake(path, "name", how))
        return BAD
    name, inside = match[1], (match[2] or "").strip()
    if name not in codecs:
        reader.mistakes.append(Mistake(path, "name", f"is no codec{hint(name, list(codecs), 'codecs')}"))
        return BAD
    args = [part.strip() for part in inside.split(",")] if inside else []
    return _bound(reader, name, args, path)


def _bound(reader: Reader, name: str, words: list[str], path: KeyPath) -> Any:
    factory = reader.catalog.codecs[name]
    parameters = list(inspect.signature(factory).parameters.values())[1 if wraps(factory) else 0 :]
    positional = [word for word in words if "=" not in word]
    split = (word.partition("=") for word in words if "=" in word)
    keywords = {key.strip(): text.strip() for key, _, text in split}
    try:
        bound = inspect.Signature(parameters).bind(*positional, **keywords)
    except TypeError as error:
        listed = ", ".join(map(_described, parameters)) or "no arguments"
        reader.mistakes.append(Mistake(path, "value", f"{error}; {name} takes {listed}"))
        return BAD
    hints = typing.get_type_hints(factory, include_extras=True)
    before = len(reader.mistakes)
    args = []
    for parameter in parameters:
        if parameter.name not in bound.arguments:
            args.append(parameter.default)
            continue
        word = _scalar(bound.arguments[parameter.name])
        kept = len(reader.mistakes)
        args.append(reader.leaf(hints.get(parameter.name, Any), word, path))
        reader.mistakes[kept:] = [m._replace(text=f"{parameter.name}: {m.text}") for m in reader.mistakes[kept:]]
    while args and args[-1] == parameters[len(args) - 1].default:
        args.pop()
    return BAD if len(reader.mistakes) > before else (name, tuple(args))


def _described(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default}"


def _scalar(word: str) -> Any:
    """The number, truth value or text that a word stands for."""
    if word in ("true", "false", "none"):
        return {"true": True, "false": False}.get(word)
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word.strip("'\"")
