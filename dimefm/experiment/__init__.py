"""One file, one experiment: from raw samples to a table of scores, stage by stage.

A pipeline file has the tables ``[extract]``, ``[train]`` and ``[eval]``. The stages run one after
another, each by the verb of its name; there is no engine of our own. What a stage was made from is
recorded in ``stages.json``, so a stage that is done and whose inputs have not changed is skipped.

=============  ====================================================
``file.py``    the tables of a pipeline file, checked
``stages.py``  what each stage is made from, does, and leaves behind
``record.py``  ``stages.json``
``plan.py``    what a run would do, with an estimate
``run.py``     the loop over the stages, and the table at the end
=============  ====================================================
"""
