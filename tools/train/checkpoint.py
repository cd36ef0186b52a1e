"""Training checkpoints: bf16 weights split over files of at most 15 MB, with the settings that made them.

A folder holds settings.json, state.json (stage, step, counters) and weights_NN.npz.  bf16 is stored as uint16.
Optimizer state is not kept: a resumed run warms it up again.
"""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errors import ToolError, require_file
from model import DsaModel

FILE_BYTES_MAX = 15_000_000
FINISHED = "finished"


def save(folder: Path, model: DsaModel, settings: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint; an older one in `folder` is replaced only after the new one is complete."""
    arrays: list[tuple[str, np.ndarray]] = []
    for name, tensor in model.state_dict().items():
        keep_float = name.endswith("router_bias")
        raw = tensor.detach().cpu()
        value = raw.float().numpy() if keep_float else raw.bfloat16().contiguous().view(torch.int16).numpy().view(np.uint16)
        arrays.append((name, value))
    parts: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, value in arrays:
        if used + value.nbytes > FILE_BYTES_MAX and parts[-1]:
            parts.append({})
            used = 0
        parts[-1][name] = value
        used += value.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        temporary = folder / f"weights_{number:02}.tmp.npz"
        np.savez(temporary, **part)
        os.replace(temporary, folder / f"weights_{number:02}.npz")
    (folder / "settings.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    (folder / "state.json").write_text(json.dumps({**state, "files": len(parts)}, indent=1) + "\n")


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads(require_file(folder / "state.json", "not a checkpoint folder").read_text())


def read_settings(folder: Path) -> dict[str, Any]:
    return json.loads(require_file(folder / "settings.json", "not a checkpoint folder").read_text())


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint made with other settings, naming the first field that differs."""
    stored = read_settings(folder)
    wanted = json.loads(json.dumps(settings))
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            raise ToolError(f"{folder}/settings.json: {key} is {stored.get(key)!r} there and {wanted.get(key)!r} now; "
                            "resume with the same settings or start in a new folder")


def load_weights(folder: Path, model: DsaModel) -> None:
    """Fill the model's parameters and buffers from a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    for number in range(read_state(folder)["files"]):
        with np.load(require_file(folder / f"weights_{number:02}.npz", "the checkpoint is incomplete")) as part:
            for name in part.files:
                value = part[name]
                tensors[name] = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16).float() if value.dtype == np.uint16 else torch.from_numpy(value)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ToolError(f"{folder}: {str(error).splitlines()[-1].strip()}") from error
