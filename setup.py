"""Lists the packages of all four floors; everything else about the package is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

FLOORS = ("compiler", "passes", "targets")

# The links to the other floors inside tapeout/ are for editors: those packages are found where they lie.
links = [pattern for floor in FLOORS for pattern in (floor, f"{floor}.*")]
packages = ["tapeout"] + [f"tapeout.{name}" for name in find_namespace_packages("tapeout", exclude=links)]
for floor in FLOORS:
    packages += [f"tapeout.{floor}"] + [f"tapeout.{floor}.{name}" for name in find_namespace_packages(floor)]
setup(packages=[name for name in packages if "__pycache__" not in name])
