//! Small files that others rewrite: noticing it, and reading them without being fooled.
//!
//! Owns when a file is looked at and for how long it must have kept still. What is in it is the
//! reader's business.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

/// How often a file's status is looked at.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// A file that changed is read once it has kept still for this long, so that no half of it is taken.
pub(super) const SETTLE: Duration = Duration::from_millis(200);

/// What tells that a file was written or made readable: length, times of modification and of change,
/// inode, device.
pub(super) type Stamp = (u64, [i64; 4], u64, u64);

/// `None` where there is no file, or none that can be looked at.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
    Some((meta.len(), times, meta.ino(), meta.dev()))
}

pub(super) fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

/// Opens whatever lies at the path; never waits for a writer.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

/// The content; `None` when it has more than `max` bytes.
pub(super) fn content(file: File, max: u64) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(max + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max).then_some(bytes))
}
