"""The sections of a report: a module each, with ``section(collection)``, None without content."""
