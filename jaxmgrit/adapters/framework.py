"""Which versions of the frameworks are supported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

LEAST = {"flax": (0, 12), "equinox": (0, 13)}


def check_version(package: str) -> None:
    """Raise an ImportError, with the command that helps, unless a supported version of a framework is installed.

    Args:
        package: "flax" or "equinox".
    """
    least = ".".join(map(str, LEAST[package]))
    remedy = f"install it: pip install 'jaxmgrit[adapters]', or pip install -U '{package}>={least}'."
    try:
        installed = version(package)
    except PackageNotFoundError:
        raise ImportError(f"jaxmgrit.adapters: {package} is not installed; {remedy}", name=package) from None
    # Two numbers are enough, and let pre-releases such as 0.12.0rc1 pass.
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < LEAST[package]:
        raise ImportError(
            f"jaxmgrit.adapters: {package}=={installed} is too old, {package}>={least} is supported; {remedy}",
            name=package,
        )
