"""The compiled part of the serving core, for what is packed here and runs on Linux on x86-64."""

import functools

from ferry.errors import FerryError
from model_code.native.build import LIBRARY, LINUX_X86_64, BuildError, compile_library


@functools.cache
def native_files() -> dict[str, bytes]:
    """The library by its path in a package, the same bytes each time. Raises FerryError where it cannot be compiled."""
    try:
        return {LIBRARY: compile_library(LINUX_X86_64)}
    except BuildError as error:
        raise FerryError(str(error)) from error
