"""The kinds of file that one evaluation of a network is written to, for other programs to run.

An entry of `EXPORT_FORMATS` writes such a file and reads it again, so that it can be compared with PyTorch.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm.utils.registry import Registry

INPUTS = ("x_t", "t", "label")
_OPSET = 18

Inputs = tuple[Tensor, ...]
Evaluate = Callable[..., Tensor]


@dataclass(frozen=True)
class Format:
    """What an entry does with an evaluation, a module of one output whose inputs are the first of `INPUTS`.

    suffix: of the file's name. write: (path, module, inputs of two images) -> None; the number of images stays free,
    and equal weights give equal bytes. read: (path) -> a function like the module.
    """

    suffix: str
    write: Callable[[Path, nn.Module, Inputs], None]
    read: Callable[[Path], Evaluate]


EXPORT_FORMATS: Registry[Format] = Registry("export format")


def _dynamic(inputs: Inputs) -> tuple[dict[int, torch.export.Dim], ...]:
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    return tuple({0: batch} for _ in inputs)


def _write_onnx(path: Path, module: nn.Module, inputs: Inputs) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name")
        program = torch.onnx.export(
            module,
            inputs,
            input_names=INPUTS[: len(inputs)],
            output_names=["x_0"],
            dynamo=True,
            dynamic_shapes=_dynamic(inputs),
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # Where each node comes from names folders and lines of this machine.
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    path.write_bytes(model.SerializeToString(deterministic=True))


def _read_onnx(path: Path) -> Evaluate:
    import onnxruntime  # here: it takes its time, and reading the settings needs the names of the formats alone

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def evaluate(*inputs: Tensor) -> Tensor:
        named = zip(INPUTS, inputs, strict=False)
        return torch.from_numpy(session.run(None, {name: value.cpu().numpy() for name, value in named})[0])

    return evaluate


def _write_torch(path: Path, module: nn.Module, inputs: Inputs) -> None:
    program = torch.export.export(module, inputs, dynamic_shapes=_dynamic(inputs), strict=False)
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(key, None)
    with path.open("wb") as file:
        torch.export.save(program, file)


def _read_torch(path: Path) -> Evaluate:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda *inputs: module(*inputs).detach()


EXPORT_FORMATS.register("onnx")(Format(".onnx", _write_onnx, _read_onnx))
EXPORT_FORMATS.register("torch")(Format(".pt2", _write_torch, _read_torch))
