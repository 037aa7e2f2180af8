"""What the command line's parser says of bad input, in the words of all other messages: field, value, what is allowed.

The texts are those of jsonargparse; one that is not known here stays as it is.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from inspect import signature

# What stands around the reason, from the outside in: a field, a field within it, the class that has that field.
FIELD = re.compile(r"""Parser key "(?P<field>[^"]+)": """)
CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)': ")
FACTORY = re.compile(r"Type collections\.abc\.Callable.*? expects a function or a callable class: ")
NO_PATH = re.compile(r"- Expected a path but (?P<path>.*?) either not accessible or invalid - ")
AROUND = (FIELD, CLASS, FACTORY, NO_PATH)
GIVEN = re.compile(r"\. Got value: Namespace\(class_path='(?P<path>[^']+)'.*")  # after the reason
KIND = r"<class '[^']+'>|typing\.Literal\[[^]]*\]|(?:tuple|list|dict)\[[^]]*\]|[\w.]+"
# A reason, and what is said of it.
REASONS = {
    rf"Expected a (?P<kinds>{KIND})\. Got value: (?P<value>.*)": "{field}: {value} is not allowed; {kinds}",
    r".*Union subtypes Subtypes: \[(?P<kinds>.*?)\] Errors: .*Given value: (?P<value>.*)": (
        "{field}: {value} is not allowed; {kinds}"
    ),
    r"Option '(?P<name>.*)' is not accepted": "{field}.{name}: there is no such field{fields}",
    r"Group '(?P<group>.*)' does not accept option '(?P<name>.*)'": "{group}.{name}: there is no such field",
    r"unrecognized arguments: --(?P<name>[^ =]+).*": "{name}: there is no such option; --help lists them",
    r"unrecognized arguments: (?P<value>[^-].*)": "arguments: {value} is one too many; --help shows what is taken",
    r"argument --(?P<name>.*): expected one argument": "{name}: a value is missing",
    r"File does not exist: '(?P<value>.*)'": "{field}: {value} does not exist",
    r"Path is not a file: '(?P<value>.*)'": "{field}: {value} is not a file",
    r"Problems parsing config: (?P<why>.*)": "config: it is not YAML ({why})",
    r"Unable to load config '(?P<value>[^']*)'.*": (
        "{field}: {value} is not allowed; fields with their values, or a file of them"
    ),
    r".*Expected a dot import path string.*": "{field}: {path} is not a class that can be imported",
    r".*?(?P<why>module '?[\w.]+'? has no attribute \S+|No module named \S+?)(\. Got value: .*)?": (
        "{field}: {path} cannot be imported ({why})"
    ),
}
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "dict": "fields with their values",
}


def plain(text: str) -> str:
    """An error of the parser, on one line, as ``field: value is not allowed; what is``."""
    field, path = "", ""
    while found := next(filter(None, (part.match(text) for part in AROUND)), None):
        text, parts = text[found.end() :], found.groupdict()
        field = f"{field}.{parts['field']}".lstrip(".") if "field" in parts else field
        path = parts.get("path", path)
    if found := GIVEN.search(text):
        text, path = text[: found.start()], found["path"]
    for reason, told in REASONS.items():
        if found := re.fullmatch(reason, text):
            parts = {"field": field, "path": path, "fields": _fields(path), **found.groupdict()}
            return told.format(**parts | {"kinds": _words(parts.get("kinds", ""))}).lstrip(".")
    return f"{field}: {text}" if field else text


def _words(kinds: str) -> str:
    """Types, as Python writes them, in words."""
    return " or ".join(dict.fromkeys(_kinds(kinds)))


def _kinds(kinds: str) -> Iterable[str]:
    for kind in re.findall(KIND, kinds):
        name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
        if kind.startswith("typing.Literal"):
            allowed = re.findall(r"""['"]([^'"]*)['"]""", kind)
            yield ("one of " if len(allowed) > 1 else "") + ", ".join(allowed)
        elif inner := re.fullmatch(r"(?:list|tuple)\[(int|float|str)\b.*\]", kind):
            yield f"a list of {WORDS[inner[1]].removeprefix('a ')}" + "s" * (inner[1] != "str")
        else:
            yield WORDS.get(name.partition("[")[0], name)


def _fields(path: str) -> str:
    """Which fields a class has, by its path; nothing where it cannot be imported."""
    module, _, name = path.rpartition(".")
    with suppress(ImportError, AttributeError, ValueError):
        taken = [each for each in signature(getattr(import_module(module), name)).parameters if each != "params"]
        return f"; {path} takes {', '.join(taken)}"
    return ""
