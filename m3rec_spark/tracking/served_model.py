"""What MLflow runs to load a registered model (models from code): no pickle."""

from mlflow.models import set_model

from m3rec_spark.tracking.pyfunc import MarketsModel

set_model(MarketsModel())
