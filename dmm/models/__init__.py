"""One file per model; `dmm.models.registry` collects them by name."""
