"""`rlspeech report`: one self-contained HTML file about a run, or a folder of runs, and their numbers as a table."""

import logging

from rlspeech.config import ReportConfig
from rlspeech.reporting.files import write_text
from rlspeech.reporting.page import page
from rlspeech.reporting.read_runs import read_jobs
from rlspeech.reporting.summary import print_table, summary_of, write_summary

log = logging.getLogger(__name__)


def run(config: ReportConfig) -> None:
    """Writes the page; where it goes into the folder of a single run, summary.json is written beside it.

    Raises UserError where the folder holds no run, a file in it is damaged, or the page cannot be written.
    """
    jobs = read_jobs(config.run_dir)
    html = page(jobs, samples=config.samples)
    summaries = [summary_of(job) for job in jobs]
    out = config.out or config.run_dir / "report.html"
    write_text(out, html)
    if config.out is None and len(jobs) == 1 and summaries[0].rows:
        write_summary(summaries[0], config.run_dir / "summary.json")
    for summary in summaries:
        print_table(summary)
    log.info("%s: %.1f MB in one file, with its sounds", out, len(html.encode()) / 1e6)
