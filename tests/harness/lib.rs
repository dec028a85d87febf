//! A mesh in a few lines: the stand-in, sidecar processes and small apps, for scenarios and benches.
