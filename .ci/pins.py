"""Prints constraints.txt with the versions of the environment that runs this, and with what it has besides."""

from importlib import metadata
from pathlib import Path

OURS = {"multiscale", "pip", "setuptools"}


def plain(name: str) -> str:
    """A name as it is compared: Ray, ray and ray_ are one."""
    return name.lower().replace("_", "-").replace(".", "-")


there = {plain(each.name): (each.name, each.version.partition("+")[0]) for each in metadata.distributions()}
first, *lines = Path("constraints.txt").read_text().splitlines()
pins = dict(line.split("==") for line in lines)
known = {plain(name) for name in pins}
pins |= {name: version for key, (name, version) in there.items() if key not in known | OURS}
print(first)
for name in sorted(pins, key=str.lower):
    print(f"{name}=={there[plain(name)][1] if plain(name) in there else pins[name]}")
