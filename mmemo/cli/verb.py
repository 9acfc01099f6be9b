"""A verb's function -> typed, explained command line."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from mmemo.files import printable

if TYPE_CHECKING:
    from rich.console import Console

EMPTY_PATH = "an empty path; is a variable of your shell empty?"


def screen() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for a file or a pipe not to cut them."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def call(function: Callable[..., int], argv: list[str], verb: str) -> int:
    """Parses a verb's options from its function's signature and docstring, and calls it.

    Args:
        function: The verb; its docstring becomes the help.
        argv: Options, without the verb.
        verb: Its name.
    """
    parser = _parser(function, verb)
    return function(**_arguments(parser, parser.parse_args(_spelled_out(function, argv))))


def call_with_many(function: Callable[..., int], argv: list[str], verb: str, many: str, needed: str) -> int:
    """As :func:`call`, but the first argument is a list, given word by word before, between or after the options.

    Args:
        function: The verb; its docstring becomes the help.
        argv: Words and options, without the verb; every option has a value.
        verb: Its name.
        many: What a word is, in the help.
        needed: What to name, told where there is no word.
    """
    words: list[str] = []
    options: list[str] = []
    parser = _parser(function, verb)
    known = {option.rstrip("+") for action in parser._actions for option in action.option_strings}
    ahead = iter(_spelled_out(function, argv))
    for word in ahead:
        if word == "--":
            words += ahead
        elif word.startswith("--") and word.split("=")[0].rstrip("+") not in known:
            parser.error(f"Unrecognized arguments: {word.split('=')[0]}")
        elif word in ("-h", "--help") or ("=" in word and word.startswith("--")):
            options.append(word)
        elif word.startswith("--"):
            value = next(ahead, None)
            if value is None or value.split("=")[0] in known:
                parser.error(f"{word} needs a value")
            else:
                options += [word, value]
        else:
            words.append(word)
    if not words and not {"-h", "--help"} & set(options):
        print(f"mmemo {verb}: name {needed}", file=sys.stderr)
        return 2
    for word in words:
        if not word:
            raise ValueError(f"{many}: {EMPTY_PATH}")
        if printable(word) != word:
            raise ValueError(f"{printable(word)}: its name is no UTF-8; rename it, or name its folder")
    parser.usage = f"mmemo {verb} {many}... [--OPTION VALUE ...]"
    next(action for action in parser._actions if not action.option_strings).metavar = f"{many}..."
    return function(**_arguments(parser, parser.parse_args([*options, json.dumps(words)] if words else options)))


def call_with_rest(function: Callable[..., int], argv: list[str], verb: str, as_positional: bool = False) -> int:
    """As :func:`call`, but options that the verb does not know go into its argument ``options``.

    Args:
        function: The verb; has an argument ``options``.
        argv: Options, without the verb.
        verb: Its name.
        as_positional: Whether arguments without a default are given by place, not by name.
    """
    argv = _spelled_out(function, argv)
    parser = _parser(function, verb, as_positional, skip={"options"})
    own: list[str] = []
    rest: list[str] = []
    known = {option for action in parser._actions for option in action.option_strings}
    target = own
    for word in argv:
        if word.startswith("--"):  # an option; what follows it, up to the next one, is its value
            target = own if word.split("=")[0] in known else rest
        target.append(word)
    return function(**_arguments(parser, parser.parse_args(own)), options=rest)


def _spelled_out(function: Callable[..., int], argv: list[str]) -> list[str]:
    """A switch alone, such as ``--transcript``, means ``--transcript true``; dashes in a name are underscores."""
    arguments = list(inspect.signature(function).parameters.values())
    names = {one.name for one in arguments}
    switches = {f"--{one.name}" for one in arguments if one.annotation in (bool, "bool")}
    paths = {f"--{one.name}" for one in arguments if "Path" in str(one.annotation)}
    said = {"yes": "true", "no": "false", "on": "true", "off": "false"}
    found: list[str] = []
    for before, word, after in zip(["", *argv], argv, [*argv[1:], ""], strict=False):
        last = _underscored(before)
        if last in switches:
            word = said.get(word.lower(), word)
        name, given, value = word.partition("=")
        for option, empty in ((last, not word), (_underscored(name), given and not value)):
            if empty and option in paths:
                raise ValueError(f"{option}: {EMPTY_PATH}")
        if _underscored(name)[2:] in names:  # --separate-channels
            word = _underscored(name) + given + value
        found.append(word)
        if word in switches and after.lower() not in ("true", "false", *said):
            found.append("true")
    return found


def _underscored(option: str) -> str:
    """``--separate-channels`` as Python names it; what is no option stays as it is."""
    return f"--{option[2:].replace('-', '_')}" if option.startswith("--") else option


def _parser(function: Callable[..., int], verb: str, as_positional: bool = True, skip: set[str] | None = None) -> Any:
    from jsonargparse import ArgumentParser

    class SentenceParser(ArgumentParser):
        """Exits with one sentence, in the place of every type that was tried."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.exit_on_error:  # one of the parsers inside, which only tries
                super().error(message, ex)
            from mmemo.training.parser import sentence

            options = [action.dest for action in self._actions if action.dest not in ("help", "config")]
            print(f"mmemo {verb}: {sentence(message, options)}; see `mmemo {verb} --help`", file=sys.stderr)
            sys.exit(2)

    documentation = (function.__doc__ or "").split("Args:")[0]
    description = "\n".join(line.strip() for line in documentation.strip().splitlines())
    parser = SentenceParser(prog=f"mmemo {verb}", description=description)
    parser.add_function_arguments(function, as_group=False, as_positional=as_positional, skip=skip)  # type: ignore[arg-type]
    return parser


def _arguments(parser: Any, parsed: Any) -> dict[str, Any]:
    return parser.instantiate(parsed).as_dict()
