"""Show chosen channels of a multi-channel or 16-bit image as RGB: which ones, in which colours, over which range."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import SlideError, SpecError

_CHOICE = re.compile(
    r"(?P<channel>.+)=#?(?P<colour>[0-9A-Fa-f]{6})(?::(?P<low>-?\d+(?:\.\d+)?)-(?P<high>-?\d+(?:\.\d+)?))?"
)
_SUGGESTED = ("0000FF", "00FF00", "FF0000", "FFFF00", "FF00FF", "00FFFF", "FFFFFF")
_OWN_COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
_HEX = re.compile("[0-9A-F]{6}")
_FORM = "give them as NAME=RRGGBB or NAME=RRGGBB:LOW-HIGH, with commas between, such as DAPI=0000FF:100-4000,1=FF0000"


@dataclass(frozen=True, slots=True)
class ChannelChoice:
    """One channel to show.

    channel  its name in the file, or its number, counted from 0
    colour   (red, green, blue), 0 to 255, that its highest value is shown in
    window   (low, high): values shown as black and as the full colour; None for the whole range of the data type
    """

    channel: str
    colour: tuple[int, int, int]
    window: tuple[float, float] | None = None

    def __str__(self) -> str:
        window = "" if self.window is None else f":{self.window[0]:.12g}-{self.window[1]:.12g}"
        return f"{self.channel}={bytes(self.colour).hex().upper()}{window}"


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels to show, added up in their colours; the text form is what the command line takes.

    A window is given in the file's own values and is the same for every tile of every slide; one taken from each
    slide's own brightness would make equal stains look different.
    """

    choices: tuple[ChannelChoice, ...]

    @staticmethod
    def parse(text: str) -> "Channels":
        """From `DAPI=0000FF:100-4000,1=FF0000`. Raises SpecError."""
        choices = []
        for part in text.split(","):
            found = _CHOICE.fullmatch(part.strip())
            if found is None:
                raise SpecError("channels", f"{part.strip()!r} is no choice of a channel", _FORM)
            colour = bytes.fromhex(found["colour"])
            window = None if found["low"] is None else (float(found["low"]), float(found["high"]))
            if window is not None and window[0] >= window[1]:
                raise SpecError("channels", f"the window of {part.strip()!r} is empty", "give LOW-HIGH with LOW < HIGH")
            choices.append(ChannelChoice(found["channel"].strip(), (colour[0], colour[1], colour[2]), window))
        return Channels(tuple(choices))

    def __str__(self) -> str:
        return ",".join(map(str, self.choices))


class FileChannels(NamedTuple):
    """The channels of a file.

    names    "" for one without a name
    dtype    of all of them
    colours  RRGGBB that the file would show them in, "" for none; only ever suggested
    """

    names: tuple[str, ...]
    dtype: np.dtype
    colours: tuple[str, ...] = ()

    def __str__(self) -> str:
        listed = ", ".join(f"{number} {name}".strip() for number, name in enumerate(self.names))
        plural = "s" if len(self.names) > 1 else ""
        return f"{len(self.names)} channel{plural} of {self.dtype.name} ({listed})"

    def suggestion(self) -> str:
        """A text for `Channels.parse` that shows these channels."""
        low, high = value_range(self.dtype)
        own = self.colours or tuple(_OWN_COLOURS.get(name.casefold(), "") for name in self.names)
        if len(set(own)) < len(self.names) or not all(map(_HEX.fullmatch, own)):
            own = _SUGGESTED if len(self.names) > 1 else ("FFFFFF",)
        named = [name if _unambiguous(name, self.names) else str(number) for number, name in enumerate(self.names)]
        return ",".join(f"{name}={colour}:{low:.12g}-{high:.12g}" for name, colour in zip(named, own, strict=False))


def refusal(path: Path | str, found: FileChannels) -> SlideError:
    """The error for a file that needs a choice of channels and got none."""
    problem = f"it is no RGB image but has {found}: how they look in RGB must be said"
    return SlideError(
        path, problem, f"choose channels, colours and value ranges, such as --channels {found.suggestion()}"
    )


def value_range(dtype: np.dtype) -> tuple[float, float]:
    """Lowest and highest value of integers; 0 and 1 for floating point."""
    if dtype.kind in "iu":
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    return 0.0, 1.0


class Blend:
    """Chosen channels of one file, ready to be laid over each other. Thread-safe.

    A channel's value v adds to each of red, green and blue

        floor(colour · clip((v - low) / (high - low), 0, 1) + 1/2)        in float64, colour 0 to 255

    and the sum over the channels is cut at 255. NaN counts as `low`.

    used      numbers of the channels in the file, in the order of the planes that `blend` takes
    channels  the choice with every window filled in, for the record
    """

    def __init__(self, channels: Channels, found: FileChannels):
        if found.dtype.kind not in "iuf":
            raise SpecError("channels", f"values of type {found.dtype.name} have no brightness", "convert the file")
        self.used = tuple(_number(choice.channel, found) for choice in channels.choices)
        if len(set(self.used)) < len(self.used):
            raise SpecError("channels", f"a channel stands twice in {channels}", "name each channel once")
        whole = value_range(found.dtype)
        self.channels = Channels(
            tuple(ChannelChoice(choice.channel, choice.colour, choice.window or whole) for choice in channels.choices)
        )
        self._dtype = found.dtype.newbyteorder("=")
        self._tables = [_table(choice, self._dtype) for choice in self.channels.choices]

    def blend(self, planes: Iterable[NDArray], into: NDArray[np.uint8]) -> None:
        """planes: one array (rows, cols) of the file's type for each of `used`; into: uint8 (rows, cols, 3)."""
        total = np.zeros(into.shape, np.uint16)
        for choice, table, plane in zip(self.channels.choices, self._tables, planes, strict=True):
            native = plane.astype(self._dtype, copy=False)
            if table is None:
                total += _contribution(choice, native)
            else:
                total += table[native.view(f"u{self._dtype.itemsize}")]
        np.minimum(total, 255, out=into, casting="unsafe")


def _table(choice: ChannelChoice, dtype: np.dtype) -> NDArray[np.uint8] | None:
    """The contribution of every value there is, by its bits as an unsigned number; None for wide types."""
    if dtype.kind == "f" or dtype.itemsize > 2:
        return None
    return _contribution(choice, np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype))


def _contribution(choice: ChannelChoice, values: NDArray) -> NDArray[np.uint8]:
    low, high = choice.window or value_range(values.dtype)
    share = np.nan_to_num((values.astype(np.float64) - low) / (high - low), nan=0.0).clip(0, 1)
    return np.floor(share[..., None] * np.array(choice.colour, np.float64) + 0.5).astype(np.uint8)


def _number(channel: str, found: FileChannels) -> int:
    by_name = {number for number, name in enumerate(found.names) if name.casefold() == channel.casefold()}
    by_number = {int(channel)} if channel.isascii() and channel.isdecimal() else set()
    matching = by_name | {number for number in by_number if number < len(found.names)}
    if len(matching) == 1:
        return matching.pop()
    problem = f"{channel!r} is no channel of the file" if not matching else f"{channel!r} means several channels"
    raise SpecError("channels", f"{problem}, which has {found}", "use one of the numbers in front of the names")


def _unambiguous(name: str, names: Sequence[str]) -> bool:
    known = [other.casefold() for other in names]
    return bool(name) and known.count(name.casefold()) == 1 and not name.isdecimal() and not set(name) & set(",=\"' \t")
