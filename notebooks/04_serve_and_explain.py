# Databricks notebook source
# MAGIC %md
# MAGIC # Serve and explain
# MAGIC One registered model for all markets: promote it, ask it, and ask it why. Run the quick start first.

# COMMAND ----------

import json

import mlflow
import pandas as pd

from m3rec_spark.config import load
from m3rec_spark.stages import explain, recommend, register
from m3rec_spark.stages.pipeline import after
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.registry import Registry
from m3rec_spark.tracking.runs import tracking_uri
from m3rec_spark.widgets import parameter

workspace = Workspace(parameter("workspace", "build/demo"))
config = load(parameter("config", "conf/demo.yaml"), parameter("settings", "").split())
uri = tracking_uri(config.tracking.uri, workspace.root)
registry = Registry.open(config.registry.name, uri, config.registry.uri)

# COMMAND ----------

# MAGIC %md
# MAGIC Registers the model, compares it with the champion on the same contract, tests the artifact, and lets it serve.

# COMMAND ----------

passed, verdicts = after(
    "evaluate", "promote", config, workspace, lambda context: register.promote(context, registry, dry_run=False)
)
print("serves" if passed else "refused", *verdicts, sep="\n")

# COMMAND ----------

mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{config.registry.name}@champion")
users = workspace.read_arrow("users").slice(0, 3).to_pandas()
market = workspace.read_arrow("markets").sort_by("market")["market_id"][int(users["market"][0])].as_py()
requests = pd.DataFrame({"market": market, "user_id": [*users["user_id"], "a stranger"], "k": 5, "explain": True})
answers = model.predict(requests)
print(answers[["user_id", "status", "items"]].to_string(index=False))

# COMMAND ----------

# MAGIC %md
# MAGIC Why the first item: its strongest reasons, and the whole table.

# COMMAND ----------

user, item = answers["user_id"][0], answers["items"][0][0]
print(*(json.loads(reason) for reason in answers["reasons"][0][0]), sep="\n")
print(after("train", "explain", config, workspace, lambda context: explain.explain(context, market, user, item)))

# COMMAND ----------

# MAGIC %md
# MAGIC Tonight's lists for everybody, as a table by market.

# COMMAND ----------

facts = after("train", "recommend", config, workspace, recommend.run)
print(pd.DataFrame(facts["markets"]).T)
