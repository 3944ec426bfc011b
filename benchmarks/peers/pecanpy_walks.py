"""pecanpy's PreCompFirstOrder (weighted, p = q = 1) on A = X'X without its diagonal.

job "from_x": from X to the walks as simulate_walks gives them, lists of node names. pecanpy compiles its closures anew
for each graph; numba's own clock tells how long, and the caller takes that (and the check below) off.
job "walking": `_random_walks` alone, on tables made and code compiled before.
"""

import time

import numpy as np
from numba.core import event
from numba_progress import ProgressBar
from pecanpy.pecanpy import PreCompFirstOrder
from scipy import sparse
from serve import arguments, serve

given = arguments()
data = np.load(given["data"])
indptr, items, n_items = data["indptr"], data["items"], int(data["n_items"])
per_item, steps = given["per_item"], given["length"] - 1


def co_occurrence() -> sparse.csr_matrix:
    X = sparse.csr_matrix((np.ones(len(items), np.float32), items, indptr), shape=(len(indptr) - 1, n_items))
    A = (X.T @ X).tocsr()
    A.setdiag(0)
    A.eliminate_zeros()
    A.sort_indices()
    return A


def graph_of(A: sparse.csr_matrix) -> PreCompFirstOrder:
    graph = PreCompFirstOrder(p=1, q=1, workers=2, random_state=1)
    graph.indptr, graph.indices = A.indptr.astype(np.uint32), A.indices.astype(np.uint32)
    graph.data = A.data.astype(np.float32)
    graph.set_node_ids(None, implicit_ids=True, num_nodes=n_items)
    return graph


def from_x() -> dict:
    marks, compiling = [time.perf_counter()], [0.0]
    A = co_occurrence()
    marks.append(time.perf_counter())
    with event.install_timer("numba:compile", compiling.append):
        graph = graph_of(A)
        graph._preprocess_transition_probs()
        marks.append(time.perf_counter())
        walks = graph.simulate_walks(num_walks=per_item, walk_length=steps)
    marks.append(time.perf_counter())
    parts = dict(zip(("gram_s", "tables_s", "walks_s"), np.diff(marks).tolist(), strict=True))
    ends = np.array([int(walk[-1]) for walk in walks if len(walk) > 1])
    degree = float(np.asarray(A.sum(axis=1)).ravel()[ends].mean())
    untimed = {"compile_s": sum(compiling), "check_s": time.perf_counter() - marks[-1]}
    return {**parts, **untimed, "walks": len(ends), "mean_degree": degree, "entries_of_A": A.nnz}


def walking() -> dict:
    with ProgressBar(total=len(starts), disable=True) as progress:
        walks = graph._random_walks(len(starts), steps, 1, starts, *moves, progress)
    return {"walks": int((walks[:, -1] > 1).sum())}


if given["job"] == "walking":
    graph = graph_of(co_occurrence())
    graph._preprocess_transition_probs()
    moves = graph.get_has_nbrs(), graph.get_move_forward()
    starts = np.random.default_rng(0).permutation(np.repeat(np.arange(n_items, dtype=np.uint32), per_item))
serve({"from_x": from_x, "walking": walking}[given["job"]])
