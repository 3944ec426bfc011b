"""m3rec promote as a job: spark-submit jobs/promote.py --config conf/xmarket.yaml --workspace DIR [key=value ...]."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["promote", *sys.argv[1:]]))
