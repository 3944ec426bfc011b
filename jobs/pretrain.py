"""m3rec pretrain as a job: spark-submit jobs/pretrain.py --config conf/xmarket.yaml --workspace DIR [key=value ...]."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
