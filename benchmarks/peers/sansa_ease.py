"""SANSA (Spišák et al., RecSys 2023): sparse approximate EASE by a Cholesky factor and an approximate inverse of it.

As its README has it for a matrix of this size: CHOLMOD, one scan, five fine-tuning steps; from the Gram. It needs
SuiteSparse (apt-get install libsuitesparse-dev), so it is no part of `make peers`:
build/peers/bin/python -m pip install --no-deps --target build/peers/sansa sansa==1.1.0 scikit-sparse==0.4.16
"""

import logging
import sys
from pathlib import Path

from serve import arguments, serve

sys.path.insert(0, str(Path(sys.prefix) / "sansa"))

import sansa
from scipy import sparse

logging.disable(logging.INFO)
given = arguments()
folder = Path(given["folder"])
gram = sparse.load_npz(folder / "gram.npz").tocsr()
config = sansa.SANSAConfig(
    l2=given["lambda_f"],
    weight_matrix_density=given["density"],
    gramian_factorizer_config=sansa.CHOLMODGramianFactorizerConfig(),
    lower_triangle_inverter_config=sansa.UMRUnitLowerTriangleInverterConfig(scans=1, finetune_steps=5),
)


def run() -> dict:
    model = sansa.SANSA(config).fit(gram, compute_gramian=False)
    for number, factor in enumerate(model.weights):
        sparse.save_npz(folder / f"sansa-{number}.npz", factor, compressed=False)
    return {"entries": sum(factor.nnz for factor in model.weights)}


serve(run)
