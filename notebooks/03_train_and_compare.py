# Databricks notebook source
# MAGIC %md
# MAGIC # Train and compare
# MAGIC The default against the paper's own loss (eq. 12), on the same frozen lists. Only `train` and `evaluate` run again.

# COMMAND ----------

import json

import pandas as pd

from m3rec_spark.config import load
from m3rec_spark.evaluation.gate import values
from m3rec_spark.schema import STAGES
from m3rec_spark.stages.pipeline import run_stages
from m3rec_spark.tables import Workspace
from m3rec_spark.widgets import parameter

workspace = Workspace(parameter("workspace", "build/demo"))
path, settings = parameter("config", "conf/demo.yaml"), parameter("settings", "").split()
variants = {"default": [], "margin loss (eq. 12)": ["train.loss=margin"], "cosine alone": ["train.ease_weights=[]"]}

# COMMAND ----------

reports = {}
for name, changed in variants.items():
    run_stages(STAGES, load(path, [*settings, *changed]), workspace)
    reports[name] = json.loads((workspace.root / "reports" / "evaluate.json").read_text(encoding="utf-8"))

# COMMAND ----------

# MAGIC %md
# MAGIC The contract's SHA-256 is the same for all: they may stand side by side.

# COMMAND ----------

assert len({report["sha256"] for report in reports.values()}) == 1
table = pd.DataFrame({name: values(report["rows"], "m3rec") for name, report in reports.items()})
print((100 * table).round(1))

# COMMAND ----------

# MAGIC %md
# MAGIC The default stays in the workspace for what comes next.

# COMMAND ----------

run_stages(STAGES, load(path, settings), workspace)
