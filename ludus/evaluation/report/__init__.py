"""A run's report as one HTML file, the page that compares runs, and their pictures as PNG.

What lives here: reading a finished run folder and making pages of it. What does not: training, scoring, or serving; the
report needs no model, no network and no server. The one idea: one file that opens anywhere, for years.
"""

from ludus.evaluation.report.comparison import write_comparison
from ludus.evaluation.report.page import write_report
from ludus.evaluation.report.render import to_png

__all__ = ["to_png", "write_comparison", "write_report"]
