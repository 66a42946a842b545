"""`--set key=value`: settings from the command line on top of a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from locallearn.config.document import Document, NotAMapping, Place, printable, split_key
from locallearn.config.mistakes import Located
from locallearn.config.reading import parse
from locallearn.errors import ConfigError, Problem


def with_settings(document: Document, settings: Sequence[str]) -> tuple[Document, list[Located]]:
    """The document with the settings, whose values are YAML, and the settings that could not be."""
    located = []
    for number, setting in enumerate(settings):
        where, order = f"--set {printable(setting)}", (1, number)
        try:
            document = _with_setting(document, setting, where, order)
        except ConfigError as error:
            located += [Located(order, problem._replace(where=where)) for problem in error.problems]
        except NotAMapping as error:
            what = f"`{error}` has no keys of its own that could be set; set it whole"
            located.append(Located(order, Problem(where, what)))
    return document, located


def _with_setting(document: Document, setting: str, where: str, order: tuple[int, int]) -> Document:
    key, equals, text = setting.partition("=")
    path = split_key(key.strip())
    if not equals or not all(path):
        raise ConfigError([Problem(where, "write key=value, such as --set train.batch=64")])
    value = parse(text, where, empty=True)
    places = {inner: Place(where, order, place.text) for inner, place in value.places.items()}
    return document.put(path, replace(value, places=places))
