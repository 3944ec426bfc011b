"""m3rec train as a job: spark-submit jobs/train.py --config conf/xmarket.yaml --workspace DIR [key=value ...]."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
