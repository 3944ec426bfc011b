"""m3rec prepare as a job: spark-submit jobs/prepare.py --config conf/xmarket.yaml --workspace DIR [key=value ...]."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
