"""The bundle on disk: stage contracts, manifest, reference samples and tolerances."""
