"""The command line's parser: what jsonargparse finds wrong, said in a sentence."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import ClassVar, NoReturn

from pytorch_lightning.cli import LightningArgumentParser


class SentenceParser(LightningArgumentParser):
    """Exits with one sentence, in the place of a page of usage and every type that was tried."""

    inside: ClassVar[list[str]] = []  # options of the parts that were tried: one of them may have been meant

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and exits with 2.

        Args:
            message: All that jsonargparse has to say.
            ex: Where it comes from.
        """
        options = [action.dest for action in self._actions if action.dest not in ("help", "config")]
        if not self.exit_on_error:  # one of the parsers inside, which only tries
            SentenceParser.inside.extend(options)
            super().error(message, ex)
        options += SentenceParser.inside
        program = self.prog.replace(" [options]", "") if self.prog.startswith("mmemo") else "mmemo"
        listed = "`mmemo fit --help` lists the options of experiments, `mmemo VERB --help` those of a verb"
        print(f"{program}: {sentence(message, options)}; {listed}", file=sys.stderr)
        sys.exit(2)


def sentence(message: str, options: Sequence[str] = ()) -> str:
    """The innermost of nested error messages, with the likeliest name that was meant.

    Args:
        message: Of jsonargparse.
        options: Those of the parser that it comes from.
    """
    if found := re.findall(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        module, name = found[-1]
        return f"there is no {module}.{name}{_meant(name, getattr(import_module(module), '__all__', []))}"
    if found := re.findall(r"No module named '([\w.]+)'", message):
        return f"there is no Python module {found[-1]}; a class_path reads package.module.Class"
    unknown = r"(?:Option|option|Key|arguments:) '?(?:--)?([\w.]+)'?(?: is not (?:accepted|expected)|$| )"
    if found := re.findall(unknown, message):
        return f"there is no option {found[-1]}{_meant(found[-1], options)}"
    message = message[max(message.rfind('Parser key "'), 0) :]  # the innermost
    union = r'Parser key "([\w.]+)":\n\s+Does not validate.*?Subtypes: \[(.*?)\]\n.*?Given value: ([^\n]*)'
    if found := re.findall(union, message, flags=re.DOTALL):
        key, types, value = found[-1]
        if "list[" in types and value.lstrip().startswith(("{", "Namespace")):
            return f"{key} is a list: begin each of its entries with a dash, as in `- class_path: ...`"
        return f"{key}: got {value.strip()}, expected one of {_plain(types)}"
    if found := re.findall(r'Parser key "([\w.]+)":[^"]*?Expected a path but (\S+) either', message):
        key, name = found[-1]
        if "." in name:
            return f"{key}: got {name}, expected another class, or a list of them, such as [{name}]"
        return f"{key}: got {name}, expected a class_path in full, such as mmemo.training.{name.rsplit('.', 1)[-1]}"
    if found := re.findall(r'Parser key "([\w.]+)":\n?\s*(?!Does not|Type|Problem)(\S[^\n]*)', message):
        key, problem = found[-1]
        return f"{key}: {_plain(problem)}"
    return message.strip().splitlines()[0][:400]


def innermost(message: str) -> str:
    """The sentence that a part raised while it was built, out of the report of every type that was tried.

    Args:
        message: Of the error, as jsonargparse passes it on; any other message comes back as it is.
    """
    if "Does not validate against any of the Union subtypes" not in message:
        return message
    noise = ("Problem with given class_path", "Expected a", "Type ", "Parser key", "Subtypes", "Given value", "Errors:")
    told = [line.strip() for line in message.splitlines()]
    told = [line.lstrip("- ") for line in told if line]
    told = [line for line in told if not line.startswith((*noise, "Does not validate"))]
    return told[0].split(" Got value: Namespace")[0] if told else message


def _plain(types: str) -> str:
    """Types as one says them, not as Python prints them."""
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types.strip()).replace("NoneType", "null")
    types = re.sub(r"typing\.Literal\[([^]]*)\]", r"one of \1", types)
    return re.sub(r"Expected an? (.*?)\. Got value: (.*)", r"got \2, expected \1", types)


def _meant(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.6)
    return f", did you mean {close[0]}?" if close else ""
