"""spark-submit jobs/prepare.py --config conf/xmarket.yaml --workspace DIR [section.key=value ...]: as `m3rec prepare`."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
