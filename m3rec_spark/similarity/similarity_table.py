"""B-Glob (paper, eq. 7) as the table SIMILARITY, both ways."""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema
from scipy import sparse

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
