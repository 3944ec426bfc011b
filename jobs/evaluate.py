"""spark-submit jobs/evaluate.py --config conf/xmarket.yaml --workspace DIR [section.key=value ...]: as `m3rec evaluate`."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
