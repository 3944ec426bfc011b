# Databricks notebook source
# MAGIC %md
# MAGIC # Quick start
# MAGIC One catalogue, several markets: mine item similarity over all of them, adapt it to each, and judge the result on frozen
# MAGIC lists. The data is a generated five-market shop; for your own, set `source.format`, `source.path` and the columns.

# COMMAND ----------

from m3rec_spark.config import load
from m3rec_spark.schema import STAGES
from m3rec_spark.stages.pipeline import run_stages
from m3rec_spark.tables import Workspace
from m3rec_spark.widgets import parameter

workspace = Workspace(parameter("workspace", "build/demo"))
config = load(parameter("config", "conf/demo.yaml"), parameter("settings", "").split())

# COMMAND ----------

# MAGIC %md
# MAGIC The stages speak through tables in the workspace; what is fresh is skipped, so running this again costs nothing.

# COMMAND ----------

run_stages(STAGES, config, workspace)

# COMMAND ----------

# MAGIC %md
# MAGIC Every model in every market, on the half of the users that nothing was chosen on.

# COMMAND ----------

print((workspace.root / "reports" / "evaluate.txt").read_text(encoding="utf-8"))

# COMMAND ----------

metrics = workspace.read_arrow("metrics").to_pandas()
figures = metrics[(metrics["split"] == "test") & (metrics["metric"] == "ndcg_10")]
print(figures.pivot(index="market", columns="model", values="value").round(3))
