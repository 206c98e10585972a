"""Exports a released model to OpenVINO; the one part of serving that needs torch.

`python -m inference.openvino_export WEIGHTS TARGET THREADS`, in a process of its own.
Converts through the framework's own front end: OpenVINO's converter tool is left out,
because it can report its use to its maker.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from inference.network import LesionNet, Logits, TorchNetwork, load_model, use_threads
from inference.openvino_network import (
    GRAPH,
    PAIR,
    PROBE,
    ExportFault,
    answers_of,
    load_export,
    probe_windows,
    write_manifest,
)
from inference.record import CHOICE_KEYS, ModelRecord
from node.domain.errors import NodeError


class _Flat(nn.Module):
    """The network with its answers in one tuple, as a graph can return them."""

    def __init__(self, network: LesionNet) -> None:
        super().__init__()
        self._network = network

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        return tuple(_named(self._network(windows)).values())


def _named(logits: Logits) -> dict[str, Tensor]:
    """Return the answers by the names of `openvino_network.answers_of`."""
    return {
        "malignancy": logits.malignancy,
        "lesion": logits.lesion,
        "birads": logits.birads,
        "margin": logits.margin,
        **{f"choices.{field}": logits.choices[field] for field in CHOICE_KEYS},
        "mask": logits.mask,
        "features": logits.features,
        "evidence": logits.evidence,
    }


def export(weights: Path, target: Path, *, threads: int = 0) -> None:
    """Write an export of the model in `weights` to `target`, and try it on its probe.

    Raises NodeError(INTEGRITY) when the weights are not the released ones, and
    ExportFault when the exported graph does not answer as the reference does.
    """
    use_threads(threads)
    network, record = load_model(weights)
    windows = probe_windows(record.side)
    reference = TorchNetwork(network)(windows)
    target.mkdir(parents=True)
    stored: dict[str, Any] = {"windows": windows, **answers_of(reference)}
    np.savez(target / PROBE, **stored)
    _write_graph(network, record, target / GRAPH)
    write_manifest(target, record)
    load_export(target, record, threads=threads)


def _write_graph(network: LesionNet, record: ModelRecord, path: Path) -> None:
    example = torch.zeros(PAIR, 1, record.side, record.side)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = tuple(_named(network(example)))
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            _Flat(network).eval(), example, check_trace=False
        )
    front_end = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)  # must outlive the conversion
    model = front_end.convert(front_end.load(decoder))
    model.reshape(list(example.shape))
    for port, name in zip(model.outputs, names, strict=True):
        port.get_tensor().set_names({name})
    ov.save_model(model, path, compress_to_fp16=False)


def main() -> None:
    """Export what the command line names; the last line of a failure says why."""
    weights, target, threads = sys.argv[1:]
    try:
        export(Path(weights), Path(target), threads=int(threads))
    except (NodeError, ExportFault) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
