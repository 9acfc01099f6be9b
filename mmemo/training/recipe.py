"""Objects -> plain settings and back: what a YAML, a checkpoint and a run folder store.

A recipe is what a YAML holds: ``{"class_path": "mmemo.models.FeatureGate", "init_args": {...}}``. It is read from the
object itself. As in scikit-learn, every part keeps its constructor arguments as attributes of the same names, or in a
dictionary called ``arguments``; there is nothing to register.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

log = logging.getLogger(__name__)

Part = TypeVar("Part")
Recipe = dict[str, Any]


class RecipeError(ValueError):
    """A part whose settings cannot be stored, or settings that no part can be built from."""


def recipe_of(part: object) -> Any:
    """Returns the settings that an object was built from, as numbers, texts, lists and dictionaries.

    Args:
        part: A part of a model, a callable that builds one (a class or ``functools.partial``), or a plain value.

    Raises:
        RecipeError: The object does not keep one of its constructor arguments.

    Example:
        >>> from mmemo.training import LastBlocks
        >>> recipe_of(LastBlocks(num_blocks=1))["init_args"]["num_blocks"]
        1
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, np.generic | Tensor):
        return part.tolist()
    if isinstance(part, Path):
        return str(part)
    if isinstance(part, Mapping) and not isinstance(part, nn.ModuleDict):
        return {str(name): recipe_of(value) for name, value in part.items()}
    if isinstance(part, list | tuple | nn.ModuleList):
        return [recipe_of(value) for value in part]
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return {field.name: recipe_of(getattr(part, field.name)) for field in dataclasses.fields(part)}
    if isinstance(part, type):
        return _class_path(part)
    if isinstance(part, functools.partial):
        return _recipe_of_partial(part)
    if inspect.isroutine(part):
        raise RecipeError(f"{part!r}: a function cannot be stored; use a class, or functools.partial of a class")
    return {"class_path": _class_path(type(part)), "init_args": _init_args(part)}


def stored_recipe(part: object) -> Any:
    """Returns the settings of an object for a checkpoint; None, with a warning, if they cannot be stored."""
    try:
        return recipe_of(part)
    except RecipeError as error:
        log.warning("the checkpoint will not store its settings (%s); pass the model to load_model to reload it", error)
        return None


def _recipe_of_partial(part: functools.partial[Any]) -> Recipe:
    # jsonargparse builds partial(instantiator, cls, **options); people write partial(cls, **options).
    classes = [value for value in (part.func, *part.args) if isinstance(value, type)]
    if len(classes) != 1:
        raise RecipeError(f"{part!r}: expected functools.partial of one class with keyword arguments")
    return {"class_path": _class_path(classes[0]), "init_args": recipe_of(part.keywords)}


def _init_args(part: object) -> Recipe:
    arguments = getattr(part, "arguments", None)
    parameters = [
        name
        for name, parameter in inspect.signature(type(part).__init__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    settings: Recipe = {}
    for name in parameters:
        if isinstance(arguments, dict) and name in arguments:
            settings[name] = recipe_of(arguments[name])
        elif hasattr(part, name):
            settings[name] = recipe_of(getattr(part, name))
        else:
            raise RecipeError(
                f"{_class_path(type(part))} does not keep its argument {name!r}, so it cannot be stored; set "
                f"self.{name} = {name} in its constructor"
            )
    return settings


def _class_path(cls: type) -> str:
    """Returns the shortest public path of a class, such as ``mmemo.models.FeatureGate``."""
    module, name = cls.__module__, cls.__qualname__
    if module.startswith("mmemo."):
        package = module.rpartition(".")[0]
        owner = sys.modules.get(package)
        if owner is not None and package != "mmemo" and name in getattr(owner, "__all__", ()):
            return f"{package}.{name}"
        top = sys.modules.get("mmemo")
        if name in getattr(top, "__all__", ()):
            return f"mmemo.{name}"
    if module == "__main__":
        raise RecipeError(
            f"class {name} is defined in a script or notebook, so a checkpoint cannot name it; move it into a file "
            "beside it, such as my_parts.py, and import it from there"
        )
    return f"{module}.{name}"


def build(kind: type[Part], recipe: Mapping[str, Any]) -> Part:
    """Builds an object from its recipe; types and names are checked by jsonargparse.

    Args:
        kind: Class of the object, or a base class of it.
        recipe: ``class_path`` and ``init_args``.

    Raises:
        RecipeError: The settings do not fit the class, or a class cannot be imported.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    check_classes(recipe)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "part", required=True)
    try:
        parsed = parser.parse_object({"part": dict(recipe)})
        return parser.instantiate(parsed).part
    except (ArgumentError, ValueError) as error:
        raise RecipeError(f"cannot build {recipe.get('class_path', kind.__name__)}: {innermost(error)}") from None


def check_classes(settings: Any, key: str = "") -> None:
    """Checks that the classes that nested settings name can be imported, and that their arguments exist.

    Args:
        settings: Settings in the layout of a YAML.
        key: Where they are, such as ``model.init_args``, for the error.

    Raises:
        RecipeError: A module, class or argument does not exist.
    """
    if isinstance(settings, Mapping):
        if isinstance(path := settings.get("class_path"), str):
            _check_class(path, settings.get("init_args") or {}, key)
        for name, value in settings.items():
            if name != "class_path":
                check_classes(value, f"{key}.{name}".lstrip("."))
    elif isinstance(settings, list):
        for index, value in enumerate(settings):
            check_classes(value, f"{key}[{index}]")
    elif isinstance(settings, str) and re.fullmatch(r"mmemo(\.\w+)+", settings):
        _check_class(settings, {}, key)


def _check_class(path: str, arguments: Mapping[str, Any], key: str) -> None:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        return  # a short name, which jsonargparse looks up
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        remedy = (
            "check its spelling"
            if "." in missing
            else f"put {missing}.py in the current folder, or install the package that provides it"
        )
        raise RecipeError(f"{key}: cannot import {missing}; {remedy}") from None
    cls = getattr(module, name, None)
    if cls is None:
        names = [known for known in dir(module) if known[0].isupper()]
        raise RecipeError(f"{key}: {module_name} has no class {name}{did_you_mean(name, names)}")
    check_arguments(cls, arguments, key)


def check_arguments(cls: Callable[..., Any], arguments: Iterable[str], key: str) -> None:
    """Checks that a class takes arguments of these names.

    Args:
        cls: The class.
        arguments: Names of arguments.
        key: Where they are in the settings, for the error.

    Raises:
        RecipeError: The class has no such argument.
    """
    parameters = inspect.signature(cls).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for argument in arguments:
        if argument not in known:
            raise RecipeError(f"{key}: {cls.__name__} has no argument {argument!r}{did_you_mean(argument, known)}")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Returns a suggestion for a misspelt name, to be appended to an error.

    Args:
        name: The misspelt name.
        known: Names that exist.

    Example:
        >>> did_you_mean("FeatureGat", ["FeatureGate", "LayerMix"])
        '; did you mean FeatureGate?'
    """
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"; did you mean {close[0]}?"
    return f", expected one of {', '.join(known)}" if len(known) <= 12 else ""


def innermost(error: Exception) -> Exception:
    """Returns the error that a part's constructor raised, if jsonargparse reports it among all types that it tried."""
    inner: BaseException | None = error
    while isinstance(inner, Exception):
        if isinstance(inner, ValueError) and not _raised_by_jsonargparse(inner):
            return inner
        inner = inner.__cause__ or inner.__context__
    return error


def _raised_by_jsonargparse(error: Exception) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__", "")) if frames else ""
    return module.partition(".")[0] in ("jsonargparse", "yaml")
