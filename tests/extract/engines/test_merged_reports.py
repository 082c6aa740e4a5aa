"""The reports of the parts of a cluster are one report; no cluster is needed for that."""

import dataclasses

from dimefm.data.skipped import Skipped
from dimefm.extract.engines.ray import _merge_reports
from dimefm.extract.report import Report


def test_what_every_part_knows_of_the_sources_is_in_the_merged_report(tmp_path):
    skipped = Skipped()
    skipped.add("files ending in .md", "a.md")
    part = Report(rows_done=3, skipped=skipped, selection="--limit 9", already_finished=True)
    merged = _merge_reports(str(tmp_path), None, [part, part])
    assert merged.rows_done == 6
    assert len(merged.skipped) == 1 and merged.selection == "--limit 9"
    assert merged.already_finished
    working = dataclasses.replace(part, already_finished=False)
    assert not _merge_reports(str(tmp_path), None, [part, working]).already_finished
