"""Folders of Hugging Face transformers as encoders, behind the one ``Encoder``.

A folder is named by its path, or by ``hf:ORG/NAME`` on the hub. Nothing that lies in it is
executed: its ``config.json`` names one of the classes of :mod:`dimefm.models.hf.families`, whose
code is that of the installed transformers.
"""
