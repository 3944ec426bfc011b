"""B-Glob (paper, eq. 7) and V-Glob (eq. 8) as tables, and back as arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql.pandas.types import to_arrow_schema
from scipy import sparse

from m3rec_spark.errors import CorruptTableError
from m3rec_spark.schema import SIMILARITY


def similarity_batch(rows: sparse.csr_matrix, first: int) -> pa.RecordBatch:
    """Rows of B-Glob from item `first` on, as SIMILARITY."""
    cells = rows.tocoo()
    columns = [pa.array(cells.row + first, pa.int32()), pa.array(cells.col, pa.int32()), pa.array(cells.data)]
    return pa.RecordBatch.from_arrays(columns, schema=to_arrow_schema(SIMILARITY))


def similarity_matrix(table: pa.Table, n_items: int) -> sparse.csr_matrix:
    """SIMILARITY, in any order, as an (n, n) float32 CSR."""
    item_a, item_b, weight = (table[name].to_numpy() for name in SIMILARITY.fieldNames())
    return sparse.csr_matrix((weight, (item_a, item_b)), shape=(n_items, n_items))


def item_vectors(table: pa.Table, n_items: int) -> NDArray[np.float32]:
    """ITEM_VECTORS as (n_items, d) V-Glob; zero for an item without a vector (cold everywhere).

    Raises:
        CorruptTableError: the table does not fit the items.
    """
    items = table["item"].to_numpy()
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    if not len(items) or len(flat) % len(items) or items.min() < 0 or items.max() >= n_items:
        raise CorruptTableError("item_vectors does not fit the items: run `m3rec pretrain --force`")
    vectors = np.zeros((n_items, len(flat) // len(items)), np.float32)
    vectors[items] = flat.reshape(len(items), -1)
    return vectors
