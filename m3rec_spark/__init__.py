"""m3rec_spark: multi-market recommendation on Spark, torch and MLflow (M3Rec, SIGIR 2022)."""

__version__ = "0.1.0"
