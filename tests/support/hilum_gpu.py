"""A GPU that is none: the driver's C functions over plain memory, and a TensorRT whose plans ONNX Runtime runs.

The functions have the types of NVIDIA's header, so that a wrong argument of ours goes wrong here, too. Building is left
to the real TensorRT-RTX.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hilum_export.errors import NoGpuError
from hilum_export.gpu import Cuda


def has_gpu() -> bool:
    try:
        Cuda()
    except NoGpuError:
        return False
    return True


HAS_GPU = has_gpu()


DRIVER = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef int CUresult; typedef int CUdevice; typedef uint64_t CUdeviceptr;
typedef struct context *CUcontext; typedef struct stream *CUstream;
static CUcontext current; static long long taken, limit = LIMIT;
static CUcontext the_context = (CUcontext)0x123456789abcLL;
CUresult cuInit(unsigned int flags) { return INIT; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = 7; return ordinal ? 101 : 0; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
  if (device != 7) return 101; strncpy(name, "Made Up GPU", size); return 0; }
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
  if (device != 7) return 101; *value = attribute == 75 ? 8 : attribute == 76 ? 6 : -1; return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 12040; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  if (device != 7) return 101; *context = the_context; return 0; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return context == the_context ? 0 : 201; }
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
  *stream = (CUstream)0x7000000001LL; return current ? 0 : 201; }
CUresult cuStreamSynchronize(CUstream stream) { return stream == (CUstream)0x7000000001LL ? 0 : 400; }
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
  if (!current) return 201;
  if (limit && taken + (long long)size > limit) return 2;
  taken += size; *address = (CUdeviceptr)(uintptr_t)malloc(size); return 0; }
CUresult cuMemFree_v2(CUdeviceptr address) { free((void *)(uintptr_t)address); return 0; }
CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void *source, size_t size) {
  memcpy((void *)(uintptr_t)target, source, size); return 0; }
CUresult cuMemcpyDtoH_v2(void *target, CUdeviceptr source, size_t size) {
  memcpy(target, (void *)(uintptr_t)source, size); return 0; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "made up"; return 0; }
"""


def driver(folder: Path, init: int = 0, limit: int = 0) -> Path:
    """The driver's library, compiled; ``init`` is what it answers first, ``limit`` its memory."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here: the calls to the GPU's driver are not checked")
    source, library = folder / "driver.c", folder / f"libcuda-{init}-{limit}.so"
    source.write_text(DRIVER)
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-w",
        f"-DINIT={init}",
        f"-DLIMIT={limit}LL",
        "-o",
        str(library),
        str(source),
    ]
    subprocess.run(command, check=True)
    return library


class MadeUpTensorRT:
    """TensorRT-RTX with another version, whose runtime runs ``network`` whatever the plan says.

    Args:
        rtx: the module ``tensorrt_rtx``.
        network: ONNX file.
        gain: what the answers are multiplied by, for a plan that is wrong.
    """

    __name__ = "made_up"
    __version__ = "10.13.2"

    def __init__(self, rtx: Any, network: Path, gain: float = 1.0, loads: bool = True) -> None:
        self._rtx, self.network, self.gain, self.loads = rtx, network, gain, loads
        self.__name__ = rtx.__name__  # one logger for both

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rtx, name)

    def Runtime(self, _logger: object) -> Any:  # noqa: N802
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        assert isinstance(plan, bytes) and plan
        return _Engine(self) if self.loads else None


class _Engine:
    def __init__(self, library: MadeUpTensorRT) -> None:
        self._library = library
        graph = onnx.load(library.network).graph
        self._tensors = [*graph.input, *graph.output]
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (tensor,) = (each for each in self._tensors if each.name == name)
        return tuple(dim.dim_value or -1 for dim in tensor.type.tensor_type.shape.dim)

    def get_tensor_dtype(self, name: str) -> Any:
        (tensor,) = (each for each in self._tensors if each.name == name)
        half = tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        return self._library.DataType.HALF if half else self._library.DataType.FLOAT

    def create_execution_context(self) -> Any:
        return _Context(self._library)


class _Context:
    def __init__(self, library: MadeUpTensorRT) -> None:
        self._library = library
        self._session = onnxruntime.InferenceSession(library.network, providers=["CPUExecutionProvider"])
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 0x7000000001
        (image,) = self._session.get_inputs()
        kind = np.dtype(np.float16 if image.type == "tensor(float16)" else np.float32)
        answers = self._session.run(None, {image.name: _view(self._addresses[image.name], self._shape, kind)})
        for output, answer in zip(self._session.get_outputs(), answers, strict=True):
            _view(self._addresses[output.name], answer.shape, answer.dtype)[:] = answer * self._library.gain
        return True


def _view(address: int, shape: tuple[int, ...], kind: Any) -> Any:
    room = ctypes.c_char * (kind.itemsize * int(np.prod(shape)))
    return np.frombuffer(room.from_address(address), kind).reshape(shape)
