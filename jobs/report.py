"""Gathers the studies and the newest runs that MLflow knows into one page, report/index.html, and Markdown.

python jobs/report.py
"""

from functools import partial

from l2t_ray.commands.write_report import main as run

main = partial(run, __doc__)

if __name__ == "__main__":
    main()
