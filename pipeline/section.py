"""Sections of the recipe, and the tables of named choices that each bring a section of their own.

A plug point is a `Choices`: a table from a name to a `Section` whose fields are the recipe's keys. What a name needs
stands in the file that defines it, and nowhere else:

    MARGINS: Choices[Margin] = Choices("margin")

    @MARGINS.add("cosface")
    class CosFace(Margin):
        cosine: float = Field(0.35, ge=0)

    class Head(Section):
        margin: Annotated[Margin, MARGINS]

reads ``margin: {name: cosface, cosine: 0.4}``, or ``margin: cosface`` with its defaults.

A package that holds one choice a file fills its table with ``import_modules(__name__, __path__)``: a new file is found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema


class Section(BaseModel):
    """A part of a recipe: unknown keys and other types are refused, and every field is documented where it stands."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class NamedSection(Section):
    """A section that one of a table's names takes."""

    table: ClassVar[Choices[Any]]
    """The table that it was added to."""

    name: str
    """Which of the table's choices this is."""


S = TypeVar("S", bound=NamedSection)
T = TypeVar("T", bound=NamedSection)


class Choices(Generic[S]):
    """A table from name to section, and the annotation of a recipe's field that holds one of them.

    Args:
        kind: what is chosen, for error messages: "margin".
        default: the name that keys without a ``name`` take; None: a name is required.
        elsewhere: names that other projects have for the same, and ours: what is meant by one that is refused.
    """

    def __init__(self, kind: str, default: str | None = None, elsewhere: Mapping[str, str] | None = None) -> None:
        self.kind, self.default, self.elsewhere = kind, default, elsewhere or {}
        self._sections: dict[str, type[S]] = {}

    def add(self, *names: str) -> Callable[[type[T]], type[T]]:
        """Decorate a section with the names that take it; one class may serve several. "timm/*" is every "timm/…".

        Raises:
            ValueError: for a name that is there already.
        """

        def decorate(section: type[T]) -> type[T]:
            for name in names:
                if name in self._sections:
                    raise ValueError(f"{self.kind}: {name!r} is there already ({self._sections[name].__module__})")
                self._sections[name] = section  # type: ignore[assignment]  # T is a kind of S, which Python cannot say
            section.table = self
            return section

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(self._sections)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(name) in self._sections

    def _entry(self, name: str) -> str:
        """What a name stands under: itself, or its family."""
        family, _, member = name.partition("/")
        return f"{family}/*" if member else name

    def __getitem__(self, name: str) -> type[S]:
        """The section of `name`.

        Raises:
            ValueError: for a name that is not there, naming those that are, and the one that another project calls so.
        """
        if name not in self:
            meant = f"; did you mean {self.elsewhere[name]}?" if name in self.elsewhere else ""
            raise ValueError(f"{self.kind}: got {name!r}, wanted one of {', '.join(self)}{meant}")
        return self._sections[self._entry(name)]

    def by_section(self) -> dict[type[S], list[str]]:
        """The names that each section serves."""
        names: dict[type[S], list[str]] = {}
        for name, section in self._sections.items():
            names.setdefault(section, []).append(name)
        return names

    def parse(self, value: object) -> S:
        """The section of a name, or of keys and values; a section passes as it is.

        The keys hold a ``name``, unless the table has a default.

        Raises:
            ValueError: for another name; for another value, in a form that `faults` takes apart.
        """
        if isinstance(value, NamedSection):
            return value  # type: ignore[return-value]  # its class was looked up when it was made
        keys = {"name": value} if isinstance(value, str) else value
        if isinstance(keys, dict) and self.default is not None:
            keys = {"name": self.default} | keys
        if not isinstance(keys, dict) or not isinstance(keys.get("name"), str):
            raise ValueError(f"name: got {value!r}, wanted one of {', '.join(self)}")  # noqa: TRY004 - for pydantic
        try:
            section = self[keys["name"]]
        except ValueError as error:
            raise ValueError(str(error).replace(f"{self.kind}:", "name:", 1)) from None
        try:
            # In JSON's mode lists are tuples and strings are paths, as in the rest of a recipe.
            return section.model_validate_json(json.dumps(keys, default=str))
        except ValidationError as error:
            raise PydanticCustomError("choice", "see faults", {"errors": error.errors(), "section": section}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic reads and writes a field of this annotation."""
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda section, info: section.model_dump(mode=info.mode), info_arg=True
            ),
        )


def check_rising(phases: Sequence[Any]) -> None:
    """Within a validator: the phases of a section, each with a ``start``, must come one after another."""
    starts = [phase.start for phase in phases]
    if starts != sorted(set(starts)):
        raise ValueError(f"phases: got starts {starts}, wanted rising steps")


@contextmanager
def inside(*location: str | int) -> Iterator[None]:
    """Within a validator: a fault of `Choices.parse` in this block lies at `location`, below what is validated."""
    try:
        yield
    except PydanticCustomError as error:
        if error.type != "choice" or error.context is None:
            raise
        moved = [fault | {"loc": (*location, *fault["loc"])} for fault in error.context["errors"]]
        raise PydanticCustomError("choice", "see faults", error.context | {"errors": moved}) from None
    except ValueError as error:
        raise ValueError(f"{'.'.join(map(str, location))}.{error}") from None


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that what they add to a table is in it."""
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")


def faults(error: ValidationError) -> Iterator[tuple[ErrorDetails, type[Section] | None]]:
    """Each fault with its whole location and, where it lies inside a choice, the section that was chosen."""
    for fault in error.errors():
        if fault["type"] != "choice":
            yield fault, None
            continue
        for inner in fault["ctx"]["errors"]:
            yield inner | {"loc": (*fault["loc"], *inner["loc"])}, fault["ctx"]["section"]
