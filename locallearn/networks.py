"""Networks: how fast a machine sends and receives, and how long the first bit is on its way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from locallearn.errors import LocallearnError
from locallearn.markers import Parsed, WrongKeys


class UnknownNetwork(LocallearnError):
    """What is written is no network."""

    exit_code = 2


AHEAD = 8
"""What follows from the batch alone, such as labels, leaves up to so many steps before its step, for each shard of the run."""


class Network(NamedTuple):
    """up, down: bytes a second that a machine sends and receives, over all of its links together. latency: seconds."""

    name: str
    up: float
    down: float
    latency: float

    def seconds(self, size: float) -> float:
        """To put so many bytes on the wire between two equal machines."""
        return size / min(self.up, self.down)


BIT = 1 / 8

NETWORKS = {
    network.name: network
    for network in (
        Network("nvlink", 150e9, 150e9, 2e-6),
        Network("pcie", 15.75e9, 15.75e9, 2e-6),
        Network("10gbit", 10e9 * BIT, 10e9 * BIT, 50e-6),
        Network("1gbit", 1e9 * BIT, 1e9 * BIT, 100e-6),
        Network("broadband", 20e6 * BIT, 100e6 * BIT, 20e-3),
        Network("1mbit", 1e6 * BIT, 1e6 * BIT, 20e-3),
        Network("64kbit", 64e3 * BIT, 64e3 * BIT, 50e-3),
        Network("1kB", 1e3, 1e3, 100e-3),
    )
}
"""By name: NVLink 2, PCIe 3 x16, Ethernet twice, home broadband with its slower way up, and three slow links."""

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)(bit|B)/s(?:\s*(up|down)\b)?")
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)")
_FACTOR = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_network(text: str) -> Network:
    """A name, or rates and a latency: `1 Mbit/s, 20 ms`, or with another rate down, `5 Mbit/s up, 50 Mbit/s down, 20 ms`."""
    if text in NETWORKS:
        return NETWORKS[text]
    found = _RATE.findall(text)
    rates = {way: float(number) * _FACTOR[prefix] * (BIT if unit == "bit" else 1) for number, prefix, unit, way in found}
    times = [float(number) * _SECONDS[unit] for number, unit in _TIME.findall(_RATE.sub("", text))]
    left = re.sub(r"[\s,]", "", _TIME.sub("", _RATE.sub("", text)))
    ways = sorted(way for *_, way in found)
    if left or ways not in ([""], ["down", "up"]) or len(times) > 1 or not all(rates.values()):
        such = "one rate such as `1 Mbit/s, 20 ms`, or both: `5 Mbit/s up, 50 Mbit/s down, 20 ms`"
        raise UnknownNetwork(f"`{text}` is no network; write one of {', '.join(NETWORKS)}, or {such}")
    return Network(text, rates[ways[-1]], rates[ways[0]], times[0] if times else 0.0)


KEYS = ("bandwidth", "up", "latency")


def in_words(value: Any) -> str:
    """A network of a file as `parse_network` reads it: so, or as `{bandwidth: 1 Mbit/s, latency: 20 ms}`, with `up` for a slower way up."""
    if not isinstance(value, Mapping):
        try:
            return parse_network(str(value)).name
        except UnknownNetwork as error:
            raise ValueError(str(error)) from None
    wrong = list(_wrong(value))
    if wrong:
        raise WrongKeys(wrong)
    down, up = value["bandwidth"], value.get("up")
    rates = [f"{up} up", f"{down} down"] if up else [down]
    return ", ".join([*rates, *([value["latency"]] if "latency" in value else [])])


def _wrong(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, given in value.items():
        rate = _RATE.fullmatch(str(given))
        if key not in KEYS:
            yield str(key), f"is no key of a network (keys: {', '.join(KEYS)})"
        elif key == "latency" and not _TIME.fullmatch(str(given)):
            yield key, "is no time with its unit, such as 20 ms"
        elif key != "latency" and not (rate and not rate[4] and float(rate[1])):
            yield key, "is no rate with its unit, such as 1 Mbit/s or 10 kB/s"
    if "bandwidth" not in value:
        yield "bandwidth", "is missing, such as 1 Mbit/s"


Line = Annotated[str, Parsed(in_words)]
"""A network as a key of a file."""
