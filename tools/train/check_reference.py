#!/usr/bin/env python3
"""Compares this model's forward pass with the numpy reference on an exported checkpoint; needs no GPU.

    check_reference.py ORACLE_DIR [--size tiny|full] [--tokens 80] [--checkpoint EXPORTED_DIR]

ORACLE_DIR holds dsa_reference.py.  Without --checkpoint a random model is exported as bf16 and as fp8 and read back.
With float32 activations the bf16 weights agree to 1e-4; so do the fp8 ones until a value falls on the other side of a
rounding boundary (median under 5e-2).  With bf16 activations the two round in different places, which a random model amplifies.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import export
import reference_ops
from chat_format import Turn, render
from errors import ToolError, require_file, run_main
from model import SPARSE, DsaModel
from model_config import TINY_FOR_TESTS, ModelConfig
from numerics import Numerics
from tokenizer import Encoder


_PROMPT = ("The hounds followed the trail into the forest. The code of the red lantern is 481. Nobody spoke for a long while, and the rain "
           "fell on the roof. The code of the old bridge is 250. She closed the book. What is the code of the red lantern?")


def _compare(oracle: object, folder: Path, config: ModelConfig, numerics: Numerics, ids: np.ndarray) -> float:
    """Median over the positions of the relative error of our logits against the reference's.

    The median, because where a rounding flips an expert or a selected token one position differs by a lot.
    """
    model = DsaModel(config, reference_ops, numerics)
    export.read_checkpoint(folder, model)
    with torch.no_grad():
        ours = model.logits(model(torch.from_numpy(ids)[None], SPARSE).hidden)[0].numpy()
    activations = "float32" if numerics.dtype == torch.float32 else "bfloat16"
    expected = oracle.Model(str(folder), act=activations).forward(ids.tolist())[0]
    errors = np.linalg.norm(ours - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    same = float((ours.argmax(-1) == expected.argmax(-1)).mean())
    weights = "fp8" if numerics.fp8 else "bf16"
    print(f"{weights} weights, {activations} activations: relative error median {np.median(errors):.1e}, "
          f"largest {errors.max():.1e}, same best token {same:.1%} of {len(ids)}")
    return float(np.median(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle", type=Path, help="folder of dsa_reference.py")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny", help="size of the random model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=80, help="sequence length (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="check this exported fp8 folder instead of a random model")
    args = parser.parse_args()
    require_file(args.oracle / "dsa_reference.py", "pass the folder of the numpy reference")
    sys.path.insert(0, str(args.oracle))
    import dsa_reference  # noqa: PLC0415  (found by the path just given)

    torch.manual_seed(0)
    config = TINY_FOR_TESTS if args.size == "tiny" else ModelConfig(index_topk=48)
    ids = np.random.default_rng(0).integers(3, config.vocab_size, args.tokens)
    exact, fp8_exact, served = Numerics(torch.float32), Numerics(torch.float32, fp8=True), Numerics(torch.bfloat16, fp8=True)
    if args.checkpoint:
        config = ModelConfig()
        encoder = Encoder(args.checkpoint / "tokenizer.json")
        ids = np.array(encoder.ids("".join(text for text, _ in render([Turn(_PROMPT, "481")]))))
        checks = [(args.checkpoint, fp8_exact, 5e-2), (args.checkpoint, served, 0.2)]
    else:
        model = DsaModel(config, reference_ops)
        with torch.no_grad():
            for layer in model.layers:
                layer.indexer.k_norm_bias.normal_(0, 0.1)
                if layer.is_moe:
                    layer.router_bias.normal_(0, 0.05)
        scratch = Path(tempfile.mkdtemp(prefix="check_reference_"))
        export.write_checkpoint(model, scratch / "bf16", fp8=False)
        export.write_checkpoint(model, scratch / "fp8", fp8=True)
        checks = [(scratch / "bf16", exact, 1e-4), (scratch / "fp8", fp8_exact, 5e-2), (scratch / "fp8", served, 0.2)]
    for folder, numerics, limit in checks:
        error = _compare(dsa_reference, folder, config, numerics, ids)
        if not error < limit:
            raise ToolError(f"{folder}: logits differ from the reference by {error:.1e}, allowed {limit:.0e}")


if __name__ == "__main__":
    run_main(main)
