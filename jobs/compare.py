"""m3rec compare as a job: spark-submit jobs/compare.py --config conf/xmarket.yaml --workspace DIR [key=value]."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
