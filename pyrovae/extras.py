"""The one place that knows which optional package comes with which extra."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from pyrovae.errors import InputError

# What each extra of pyproject.toml installs, by the names that are imported.
EXTRAS = {
    "report": ("matplotlib", "jinja2", "sklearn", "h5netcdf", "h5py"),
    "tables": ("pyarrow",),
    "images": ("PIL",),
}
_INSTALLED_AS = {"sklearn": "scikit-learn", "PIL": "pillow"}  # where the two names differ


class MissingPackage(InputError):
    """An optional package is not installed.

    Args:
        package: its name, as it is imported.
        purpose: what it is needed for, as ``"a picture"``.

    Attributes:
        remedy: what needs it, and the command that installs it.

    >>> MissingPackage("sklearn", "the classifier").remedy
    "the classifier needs scikit-learn: pip install 'pyrovae[report]'"
    """

    def __init__(self, package: str, purpose: str) -> None:
        extra = next(extra for extra, packages in EXTRAS.items() if package in packages)
        name = _INSTALLED_AS.get(package, package)
        self.remedy = f"{purpose} needs {name}: pip install 'pyrovae[{extra}]'"
        sentence = self.remedy[0].upper() + self.remedy[1:]
        super().__init__(f"expected the package {name}; got none. {sentence}")


@contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Name the extra that brings an optional package which an import within does not find.

    Args:
        purpose: what the packages imported within are needed for, as ``"a picture"``.

    Raises:
        MissingPackage: if one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not any(package in packages for packages in EXTRAS.values()):
            raise  # something that an optional package needs itself
        raise MissingPackage(package, purpose) from error


def check_packages(*packages: str, purpose: str) -> None:
    """Find out whether packages are installed, before the work begins that needs them.

    Args:
        packages: their names, as they are imported.
        purpose: what they are needed for.

    Raises:
        MissingPackage: if one of them is not installed.
    """
    with needed_for(purpose):
        for package in packages:
            importlib.import_module(package)
