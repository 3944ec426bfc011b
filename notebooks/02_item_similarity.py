# Databricks notebook source
# MAGIC %md
# MAGIC # Item similarity across markets
# MAGIC What the markets share, and which items are like an item in each of them. Run the quick start first.

# COMMAND ----------

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from m3rec_spark.evaluation.report import heat_map
from m3rec_spark.ranking.bundle import open_places
from m3rec_spark.ranking.pack import lay_out
from m3rec_spark.ranking.similar import shared_items, similar_items
from m3rec_spark.tables import Workspace
from m3rec_spark.widgets import parameter

workspace = Workspace(parameter("workspace", "build/demo"))
scratch = tempfile.TemporaryDirectory()
served = open_places(lay_out(workspace, Path(scratch.name)))
markets = list(served.markets)

# COMMAND ----------

# MAGIC %md
# MAGIC The share of each market's items (row) that another market (column) sells too.

# COMMAND ----------

shared = shared_items(served.arrays)
print(pd.DataFrame(shared, markets, markets).round(2))
figure = heat_map(shared, markets, "share of the row market's items sold in the column market")
figure.savefig(workspace.root / "reports" / "shared_items.png")

# COMMAND ----------

# MAGIC %md
# MAGIC Neighbours of an item: the one that most shoppers bought, unless the parameter `item` names another.

# COMMAND ----------

sold = np.bincount(served.arrays.slot_items, served.arrays.slot_counts)
item = parameter("item", served.items[int(sold.argmax())])
neighbours = pd.DataFrame([vars(one) for one in similar_items(served, item, k=5)])
print(f"items like {item}")
print(neighbours.to_string(index=False))

# COMMAND ----------

# MAGIC %md
# MAGIC The item similarity of all markets, B-Glob (eq. 7): its strongest rows.

# COMMAND ----------

similarity = workspace.read_arrow("similarity").to_pandas()
print(similarity.nlargest(10, "weight").to_string(index=False))
scratch.cleanup()
