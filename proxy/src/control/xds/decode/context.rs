//! What decoding needs besides the message, and what it finds out besides the model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use zeroize::Zeroizing;

use super::error::At;
use super::secret::Secret;
use crate::model::{DownstreamTls, Identity, Name, Rbac, Roots, TrustBundle, UpstreamTls};

/// More of a file is not read: no certificate bundle is of this size.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Once there are so many notices, further ones are left out: they are read by people.
const MAX_NOTICES: usize = 500;

/// Where the contents of a `DataSource` come from that is not inline.
pub trait Files {
    /// The whole content of a file.
    ///
    /// # Errors
    /// Why it cannot be read, without its path.
    fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, String>;

    /// An environment variable.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The file system, and the environment as it was at the start.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The environment's variables.
    pub variables: BTreeMap<String, String>,
}

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
        let reason = |error: std::io::Error| format!("cannot be read: {error}");
        // Of a pipe or device the control thread would wait for bytes.
        if !std::fs::metadata(path).map_err(reason)?.is_file() {
            return Err("is no regular file".to_owned());
        }
        let file = std::fs::File::open(path).map_err(reason)?;
        let mut content = Zeroizing::new(Vec::new());
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut content)
            .map_err(reason)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
        }
        Ok(content)
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }
}

/// Everything around the messages of one pass: one response of the control plane, one bootstrap file.
#[expect(missing_debug_implementations, reason = "it holds certificates' keys")]
pub struct Context<'a> {
    /// Reads what messages point at.
    pub files: &'a dyn Files,
    /// Secrets known by now, the bootstrap's and the control plane's.
    pub secrets: &'a BTreeMap<Name, Secret>,
    /// Whether a key fits its certificate and can be used; the error never quotes the key.
    pub check_identity: fn(&Identity) -> Result<(), String>,
    /// Lends what earlier passes decoded alike.
    pub shared: &'a mut Shared,
    /// What is set and has no effect here, each with its place, in words for a person.
    pub notices: BTreeSet<String>,
    /// Files and directories whose change asks for another pass.
    pub watched: BTreeSet<PathBuf>,
    /// Secrets that messages want of the control plane.
    pub interest: BTreeSet<Name>,
    /// Identities by the bytes that they were read from: the clusters of a mesh all have the same one.
    pub(super) identities: Vec<(Zeroizing<Vec<u8>>, Arc<Identity>)>,
    /// Likewise authorities.
    pub(super) roots: Vec<(Vec<u8>, Arc<Roots>)>,
}

impl<'a> Context<'a> {
    /// For one pass.
    pub fn new(
        files: &'a dyn Files,
        secrets: &'a BTreeMap<Name, Secret>,
        check_identity: fn(&Identity) -> Result<(), String>,
        shared: &'a mut Shared,
    ) -> Self {
        Self {
            files,
            secrets,
            check_identity,
            shared,
            notices: BTreeSet::new(),
            watched: BTreeSet::new(),
            interest: BTreeSet::new(),
            identities: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// Notes that something is set and has no effect: `what` is a predicate such as `is not honoured`.
    pub fn notice(&mut self, at: &At<'_>, what: &str) {
        if self.notices.len() < MAX_NOTICES {
            self.notices.insert(format!("{}: {at} {what}", at.root()));
        }
    }
}

/// Parts that are in use, so that what did not change stays the same `Arc`: a TLS configuration is built
/// once for each. Lives as long as its source; keeps nothing alive.
#[derive(Debug, Default)]
pub struct Shared {
    identities: Vec<Weak<Identity>>,
    roots: Vec<Weak<Roots>>,
    bundles: Vec<Weak<TrustBundle>>,
    downstream: Buckets<DownstreamTls>,
    upstream: Buckets<UpstreamTls>,
    rules: Buckets<Rbac>,
}

/// By a hash of the bytes that they were decoded from, which only narrows the search: equality decides.
type Buckets<T> = HashMap<u64, Vec<Weak<T>>>;

impl Shared {
    pub(super) fn identity(&mut self, new: Identity) -> Arc<Identity> {
        // The same certificate at another path is watched and shown as another.
        lend(&mut self.identities, new, |a, b| a == b && a.path == b.path)
    }

    pub(super) fn roots(&mut self, new: Roots) -> Arc<Roots> {
        lend(&mut self.roots, new, Roots::eq)
    }

    pub(super) fn bundle(&mut self, new: TrustBundle) -> Arc<TrustBundle> {
        lend(&mut self.bundles, new, TrustBundle::eq)
    }

    pub(super) fn downstream(&mut self, bytes: &[u8], new: DownstreamTls) -> Arc<DownstreamTls> {
        lend(bucket(&mut self.downstream, bytes), new, DownstreamTls::eq)
    }

    pub(super) fn upstream(&mut self, bytes: &[u8], new: UpstreamTls) -> Arc<UpstreamTls> {
        lend(bucket(&mut self.upstream, bytes), new, UpstreamTls::eq)
    }

    pub(super) fn rules(&mut self, bytes: &[u8], new: Rbac) -> Arc<Rbac> {
        lend(bucket(&mut self.rules, bytes), new, Rbac::eq)
    }

    /// Forgets what nobody holds any more. To be called after a snapshot was published.
    pub fn sweep(&mut self) {
        self.identities.retain(alive);
        self.roots.retain(alive);
        self.bundles.retain(alive);
        sweep(&mut self.downstream);
        sweep(&mut self.upstream);
        sweep(&mut self.rules);
    }
}

fn alive<T>(weak: &Weak<T>) -> bool {
    weak.strong_count() > 0
}

fn sweep<T>(buckets: &mut Buckets<T>) {
    buckets.retain(|_, bucket| {
        bucket.retain(alive);
        !bucket.is_empty()
    });
}

fn bucket<'a, T>(buckets: &'a mut Buckets<T>, bytes: &[u8]) -> &'a mut Vec<Weak<T>> {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    buckets.entry(hasher.finish()).or_default()
}

fn lend<T>(known: &mut Vec<Weak<T>>, new: T, equal: impl Fn(&T, &T) -> bool) -> Arc<T> {
    let mut living = known.iter().filter_map(Weak::upgrade);
    if let Some(old) = living.find(|old| equal(old, &new)) {
        return old;
    }
    let new = Arc::new(new);
    known.retain(alive);
    known.push(Arc::downgrade(&new));
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_parts_are_one_while_somebody_holds_them() {
        let mut shared = Shared::default();
        let first = shared.rules(b"a", Rbac::deny_all("x"));
        assert!(Arc::ptr_eq(&first, &shared.rules(b"a", Rbac::deny_all("x"))));
        // The hash alone never makes two things one.
        assert!(!Arc::ptr_eq(&first, &shared.rules(b"a", Rbac::deny_all("y"))));
        drop(first);
        shared.sweep();
        assert!(shared.rules.is_empty());
    }

    #[test]
    fn files_are_bounded_and_regular() {
        let disk = Disk::default();
        assert_eq!(
            disk.read(Path::new("/dev/zero")).unwrap_err(),
            "is no regular file"
        );
        assert!(
            disk.read(Path::new("/nowhere"))
                .unwrap_err()
                .starts_with("cannot be read: ")
        );
        assert!(
            !disk
                .read(Path::new("/proc/self/exe"))
                .is_ok_and(|content| content.is_empty())
        );
    }
}
