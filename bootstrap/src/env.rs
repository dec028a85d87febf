//! The process's environment and files as [`load`](crate::load()) sees them.
//!
//! Owns the two traits and their implementations. The environment itself is read once by the binary
//! and handed in: nothing here asks the process for it, so a test passes a map and sets nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Environment variables, as they were when the process started.
pub trait Env {
    /// The value of `name`, when there is one and it is UTF-8.
    fn var(&self, name: &str) -> Option<String>;

    /// The names of all variables whose value is UTF-8.
    fn names(&self) -> Vec<String>;

    /// The names of variables that exist but are not UTF-8. Needed ones are reported by name rather
    /// than taken for absent.
    fn not_utf8(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Env for BTreeMap<String, String> {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// A process's real environment, which may hold bytes that are no text.
#[derive(Clone, Default)]
pub struct OsEnv {
    text: BTreeMap<String, String>,
    not_utf8: BTreeSet<String>,
}

/// Sorts `vars` (`std::env::vars_os()` in the binary) into text and names of what is no text.
pub fn env_from_os(vars: impl IntoIterator<Item = (OsString, OsString)>) -> OsEnv {
    let mut env = OsEnv::default();
    for (name, value) in vars {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => {
                env.text.insert(name, value);
            }
            (Ok(name), Err(_)) => {
                env.not_utf8.insert(name);
            }
            (Err(name), _) => {
                env.not_utf8.insert(name.to_string_lossy().into_owned());
            }
        }
    }
    env
}

impl Env for OsEnv {
    fn var(&self, name: &str) -> Option<String> {
        self.text.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.text.keys().cloned().collect()
    }

    fn not_utf8(&self) -> Vec<String> {
        self.not_utf8.iter().cloned().collect()
    }
}

/// What is at a path, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file that can be read as often as one likes.
    Regular,
    /// A folder.
    Folder,
    /// A pipe, a device, a socket: what was read is gone.
    Other,
}

/// The file system, for the little that must be known before anything runs.
pub trait Files {
    /// Whether something is at `path`, of whatever kind.
    fn exists(&self, path: &Path) -> bool;

    /// What is at `path`, found without opening it; nothing where nothing can be seen.
    fn kind(&self, path: &Path) -> Option<FileKind>;

    /// The text of the file at `path`.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// The names in the folder at `path`, in no particular order; names that are not UTF-8 are left
    /// out.
    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>>;
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn kind(&self, path: &Path) -> Option<FileKind> {
        let found = std::fs::metadata(path).ok()?;
        Some(if found.is_file() {
            FileKind::Regular
        } else if found.is_dir() {
            FileKind::Folder
        } else {
            FileKind::Other
        })
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }
}

/// Files in memory, for tests and fuzzing. A folder exists when a file is below it.
#[derive(Clone, Debug, Default)]
pub struct MapFiles(BTreeMap<PathBuf, String>);

impl MapFiles {
    /// The same files and one more.
    #[must_use]
    pub fn with(mut self, path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.0.insert(path.into(), text.into());
        self
    }
}

impl Files for MapFiles {
    fn exists(&self, path: &Path) -> bool {
        self.0.keys().any(|file| file.starts_with(path))
    }

    fn kind(&self, path: &Path) -> Option<FileKind> {
        match self.0.contains_key(path) {
            true => Some(FileKind::Regular),
            false => self.exists(path).then_some(FileKind::Folder),
        }
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        match self.0.get(path) {
            Some(text) => Ok(text.clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        if !self.exists(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = |file: &PathBuf| {
            let first = file.strip_prefix(path).ok()?.components().next()?;
            Some(first.as_os_str().to_str()?.to_owned())
        };
        let names: BTreeSet<String> = self.0.keys().filter_map(below).collect();
        Ok(names.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;

    use super::{Env, FileKind, Files, MapFiles, RealFiles, env_from_os};

    #[test]
    fn what_is_no_text_is_known_by_name() {
        let bytes = |b: &[u8]| OsString::from_vec(b.to_vec());
        let env = env_from_os([
            (bytes(b"GOOD"), bytes(b"value")),
            (bytes(b"BAD"), bytes(b"\xff\xfe")),
            (bytes(b"NAME\xff"), bytes(b"value")),
        ]);
        assert_eq!(env.names(), ["GOOD"]);
        assert_eq!(env.var("BAD"), None);
        assert_eq!(env.not_utf8(), ["BAD", "NAME\u{fffd}"]);
    }

    #[test]
    fn files_in_memory_have_folders() {
        let files = MapFiles::default().with("/a/b/c.txt", "c").with("/a/d", "d");
        assert!(files.exists(Path::new("/a/b")));
        assert!(!files.exists(Path::new("/a/x")));
        let kind = |path| files.kind(Path::new(path));
        assert_eq!(kind("/a/d"), Some(FileKind::Regular));
        assert_eq!(kind("/a/b"), Some(FileKind::Folder));
        assert_eq!(kind("/a/x"), None);
        assert_eq!(files.list_dir(Path::new("/a")).unwrap(), ["b", "d"]);
        assert!(files.list_dir(Path::new("/nowhere")).is_err());
        assert_eq!(files.read(Path::new("/a/d")).unwrap(), "d");
    }

    #[test]
    fn real_files_say_what_is_not_there() {
        let nowhere = Path::new("/nonexistent/attache");
        assert!(!RealFiles.exists(nowhere));
        assert_eq!(RealFiles.kind(nowhere), None);
        assert_eq!(RealFiles.kind(Path::new("/dev/null")), Some(FileKind::Other));
        assert_eq!(RealFiles.kind(Path::new("/dev")), Some(FileKind::Folder));
        assert!(RealFiles.read(nowhere).is_err());
        assert!(RealFiles.list_dir(nowhere).is_err());
    }
}
