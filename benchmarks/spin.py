"""The peer of the sweep: SPIN, Strassen's inverse on MLlib's BlockMatrix (Misra et al. 2018, arXiv:1801.04723).

With A in 2 x 2 parts, six products and two inverses of half the size (the letters are those of their algorithm 2):
    I = A11^-1         III = I A12        V = IV - A22       C12 = III VI       C11 = I - III C21
    II = A21 I         IV = A21 III       VI = V^-1          C21 = VI II        C22 = -VI
A single block is inverted by LAPACK in the driver's Python, and travels there and back as bytes. To its favour, against
the paper: parts are taken out and put together as DataFrames inside the JVM, what is used twice is kept in memory, and
the products may run on native BLAS (java_options).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from py4j.protocol import Py4JJavaError
from pyspark import StorageLevel
from pyspark.mllib.common import callMLlibFunc
from pyspark.mllib.linalg.distributed import BlockMatrix
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy.linalg import lapack


def java_options(mkl: Path) -> str:
    """For spark.driver.extraJavaOptions: the vector unit for MLlib's BLAS, and MKL where the file is there."""
    native = f" -Ddev.ludovic.netlib.blas.nativeLibPath={mkl}" if mkl.is_file() else ""
    return f"--add-modules=jdk.incubator.vector{native}"


def java_blas(spark: Any) -> str:
    """What MLlib multiplies with: JNIBLAS is native, VectorBLAS Java's vector unit, Java11BLAS plain loops."""
    implementations = spark._jvm.dev.ludovic.netlib.blas
    for candidate in (implementations.NativeBLAS, implementations.JavaBLAS):
        with contextlib.suppress(Py4JJavaError):  # there is no native library
            return candidate.getInstance().getClass().getSimpleName()
    return "unknown"


def block_matrix(spark: Any, array: np.ndarray, block: int) -> BlockMatrix:
    """A square array as a BlockMatrix, in memory. Its blocks are made in the JVM, from bytes."""
    n, jvm = len(array), spark._jvm
    blocks = jvm.java.util.ArrayList()
    for i in range(0, n, block):
        for j in range(0, n, block):
            piece = array[i : i + block, j : j + block]
            values = spark.sparkContext._gateway.new_array(jvm.double, piece.size)
            jvm.java.nio.ByteBuffer.wrap(piece.tobytes(order="F")).order(
                jvm.java.nio.ByteOrder.LITTLE_ENDIAN
            ).asDoubleBuffer().get(values)
            matrix = jvm.org.apache.spark.mllib.linalg.DenseMatrix(*piece.shape, values)
            blocks.add(jvm.scala.Tuple2(jvm.scala.Tuple2(i // block, j // block), matrix))
    rdd = spark.sparkContext._jsc.parallelize(blocks, len(blocks)).rdd()
    java = jvm.org.apache.spark.mllib.linalg.distributed.BlockMatrix(rdd, block, block, n, n)
    return kept(BlockMatrix(java, block, block, n, n))


def to_array(spark: Any, A: BlockMatrix) -> np.ndarray:
    """The whole of it, in Fortran order."""
    jvm, rows, columns = spark._jvm, A.numRows(), A.numCols()
    values = A._java_matrix_wrapper._java_model.toLocalMatrix().values()
    buffer = jvm.java.nio.ByteBuffer.allocate(8 * rows * columns).order(jvm.java.nio.ByteOrder.LITTLE_ENDIAN)
    buffer.asDoubleBuffer().put(values)
    return np.frombuffer(buffer.array()).reshape(rows, columns, order="F")


def inverse(A: BlockMatrix) -> BlockMatrix:
    """A^-1 of a square matrix whose blocks on a side are a power of two."""
    count = A.numRowBlocks
    if count == 1:
        return inverse_of_block(A)
    half = count // 2
    A11, A12, A21, A22 = (part(A, half, i, j) for i in (0, 1) for j in (0, 1))
    I = inverse(A11)  # noqa: E741
    II = kept(A21.multiply(I))
    III = kept(I.multiply(A12))
    IV = A21.multiply(III)
    V = kept(IV.subtract(A22))
    VI = inverse(V)
    C12 = III.multiply(VI)
    C21 = kept(VI.multiply(II))
    C11 = I.subtract(III.multiply(C21))
    return kept(arranged(A, half, C11, C12, C21, VI))


def inverse_of_block(A: BlockMatrix) -> BlockMatrix:
    """The leaf."""
    spark = SparkSession.active()
    factors, pivots, _ = lapack.dgetrf(to_array(spark, A).copy(order="F"), overwrite_a=1)
    inverted, _ = lapack.dgetri(factors, pivots, overwrite_lu=1)
    return block_matrix(spark, inverted, A.rowsPerBlock)


def part(A: BlockMatrix, half: int, i: int, j: int) -> BlockMatrix:
    """breakMat and xy: the blocks of a quarter of A, numbered from 0."""
    row, column = F.col("blockRowIndex"), F.col("blockColIndex")
    inside = (F.floor(row / half) == i) & (F.floor(column / half) == j)
    quarter = frame(A).filter(inside)
    side = half * A.rowsPerBlock
    rows, columns = (side if index == 0 else A.numRows() - side for index in (i, j))
    return matrix(shifted(quarter, -half * i, -half * j), A.rowsPerBlock, rows, columns)


def arranged(
    A: BlockMatrix, half: int, C11: BlockMatrix, C12: BlockMatrix, C21: BlockMatrix, VI: BlockMatrix
) -> BlockMatrix:
    """[[C11, C12], [C21, -VI]]; 0 - VI is how a BlockMatrix is negated."""
    zero = matrix(frame(VI).filter("blockRowIndex < 0"), A.rowsPerBlock, VI.numRows(), VI.numCols())
    quarters = ((C11, 0, 0), (C12, 0, half), (C21, half, 0), (zero.subtract(VI), half, half))
    frames = [shifted(frame(quarter), rows, columns) for quarter, rows, columns in quarters]
    union = frames[0].union(frames[1]).union(frames[2]).union(frames[3])
    return matrix(union, A.rowsPerBlock, A.numRows(), A.numCols())


def shifted(blocks: DataFrame, rows: int, columns: int) -> DataFrame:
    return blocks.select(
        (F.col("blockRowIndex") + rows).alias("blockRowIndex"),
        (F.col("blockColIndex") + columns).alias("blockColIndex"),
        "subMatrix",
    )


def frame(A: BlockMatrix) -> DataFrame:
    """(blockRowIndex, blockColIndex, subMatrix) of a BlockMatrix, in the JVM."""
    blocks = callMLlibFunc("getMatrixBlocks", A._java_matrix_wrapper._java_model)
    names = ("blockRowIndex", "blockColIndex", "subMatrix")
    return blocks.select(*(F.col(path).alias(name) for path, name in zip(("_1._1", "_1._2", "_2"), names, strict=True)))


def matrix(blocks: DataFrame, block: int, rows: int, columns: int) -> BlockMatrix:
    place = F.struct(*(F.col(name).cast("long") for name in ("blockRowIndex", "blockColIndex")))
    java = callMLlibFunc("createBlockMatrix", blocks.select(place, "subMatrix"), block, block, rows, columns)
    return BlockMatrix(java, block, block, rows, columns)


def kept(A: BlockMatrix) -> BlockMatrix:
    """In memory, and there now: what is used twice is reckoned once."""
    A.persist(StorageLevel.MEMORY_AND_DISK)
    frame(A).count()
    return A
