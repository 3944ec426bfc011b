"""m3rec recommend as a job: spark-submit jobs/recommend.py --config conf/xmarket.yaml --workspace DIR [key=value]."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:]]))
