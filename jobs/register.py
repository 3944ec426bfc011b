"""m3rec register as a job: spark-submit jobs/register.py --config conf/xmarket.yaml --workspace DIR [key=value ...]."""

import sys

from m3rec_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["register", *sys.argv[1:]]))
