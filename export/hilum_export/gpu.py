"""The GPU, through its driver's own library: what it is, memory on it, copies to and from it.

Where there is an NVIDIA driver there is ``libcuda``, also in a container that holds TensorRT and nothing else; its
functions have kept their form for ten years. CUDA for Python would have to match the driver, and a torch with CUDA is
gigabytes, of which a plan needs eight calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from hilum_export.errors import NoGpuError
from hilum_inference.errors import EngineError, OutOfMemoryError

LIBRARIES: Final = ("libcuda.so.1", "nvcuda.dll")
NO_GPU: Final = (
    "Here is no NVIDIA GPU with its driver. A plan is built, checked and run on the machine that will serve it: "
    "run the same command there."
)
_OUT_OF_MEMORY: Final = 2
_CAPABILITY: Final = (75, 76)
"""Attributes of a device: major and minor number of its compute capability."""


@dataclass(frozen=True)
class Gpu:
    """What a plan is made for.

    Attributes:
        name: such as ``NVIDIA A10``.
        capability: compute capability, such as ``8.6``.
        driver: the newest CUDA that its driver knows, such as ``CUDA 12.4``.
    """

    name: str
    capability: str
    driver: str


class Cuda:
    """The first GPU; calls are for one thread at a time.

    Args:
        names: of the driver's library, tried in turn.

    Raises:
        NoGpuError: no driver, or no GPU.
    """

    def __init__(self, names: Sequence[str] = LIBRARIES) -> None:
        self._library = _loaded(names)
        device, context, version = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        if self._library.cuInit(0) or self._library.cuDeviceGet(ctypes.byref(device), 0):
            raise NoGpuError(NO_GPU)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)  # TensorRT uses this one, too
        self._context = context
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        capability = ".".join(str(self._attribute(which, device)) for which in _CAPABILITY)
        driver = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        self.gpu = Gpu(name.value.decode(errors="replace"), capability, driver)
        stream = ctypes.c_void_p()
        self.use()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = int(stream.value or 0)

    def use(self) -> None:
        """Make the GPU that of the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def room(self, size: int) -> int:
        """The address of so many bytes on the GPU.

        Raises:
            OutOfMemoryError: it has not got them.
        """
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Give room back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def send(self, values: NDArray[Any], address: int) -> None:
        """Copy values, which lie in one piece, to the GPU."""
        source = values.ctypes.data_as(ctypes.c_void_p)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(values.nbytes))

    def fetch(self, address: int, values: NDArray[Any]) -> None:
        """Copy from the GPU into values, which lie in one piece."""
        target = values.ctypes.data_as(ctypes.c_void_p)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(values.nbytes))

    def wait(self) -> None:
        """Until everything of the stream is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def _attribute(self, which: int, device: ctypes.c_int) -> int:
        found = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(found), which, device)
        return found.value

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise OutOfMemoryError("The GPU ran out of memory.")
        if code:
            text = ctypes.c_char_p()
            with suppress(AttributeError):
                self._library.cuGetErrorString(code, ctypes.byref(text))
            said = (text.value or b"no text").decode(errors="replace")
            raise EngineError(f"The GPU's driver failed in {function}: {said} ({code}).")


def _loaded(names: Sequence[str]) -> ctypes.CDLL:
    for name in names:
        with suppress(OSError):
            return ctypes.CDLL(name)
    raise NoGpuError(NO_GPU)
