"""Errors that say what, where and how to mend it, and survive a trip between processes."""

from pathlib import Path

from .source import shown


class EngineError(Exception):
    """Base of every error the engine raises on purpose.

    where    the file, slide, option or field concerned
    problem  what is wrong with it, in one clause
    remedy   what the user can do about it
    """

    def __init__(self, where: object, problem: str, remedy: str):
        # The plain arguments go to super() untouched: otherwise the error does not unpickle across workers.
        super().__init__(shown(where) if isinstance(where, Path | str) else where, problem, remedy)

    @property
    def problem(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        where, problem, remedy = self.args
        between = "" if str(problem).endswith("\n") else "; "  # a problem with a table ends its last line itself
        return f"{where}: {problem}{between}{remedy}"


class SlideError(EngineError):
    """A slide cannot be opened, or has no usable scale or pixels."""


class TileError(SlideError):
    """Some pixels of an otherwise sound slide cannot be decoded or are missing from the file."""


class RemoteError(EngineError):
    """The store or network that a slide lies behind fails; the slide itself may be sound."""


class ManifestError(EngineError):
    """The table of slides, or a folder given in its place, cannot be used."""


class AnnotationError(EngineError):
    """A file of drawn regions is missing, damaged, or of a format that is not read."""


class SpecError(EngineError):
    """A setting is unknown, out of range, or contradicts another."""


class StoreError(EngineError):
    """A store or output folder is missing, incomplete, damaged, or made from something else."""


class BackboneError(EngineError):
    """A backbone or head cannot be built, its weights not be found, or its contract is not the one asked for."""


class ReviewError(EngineError):
    """What a reviewer asks for does not fit the slide, or what was said of it before."""
