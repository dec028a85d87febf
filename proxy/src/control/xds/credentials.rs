//! Files from which the target is made, watched for as long as the client runs: Nomad truncates and
//! rewrites the bootstrap file in place, and with it the token, whenever it renews its Consul token.
//!
//! Owns when the files are read again. What they mean is the reader's to say; one that it cannot make
//! sense of is taken for half a file: nothing changes.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::control::file::{self, POLL, SETTLE, stamps};

/// A bootstrap file has some KiB.
const MAX_BYTES: u64 = 16 << 20;

/// The content of one of the files, zeroed when dropped; `None` where there is no regular file of up to
/// 16 MiB that can be read.
pub type Content = Option<Zeroizing<Vec<u8>>>;

/// Reads `paths` when they change, and once at the beginning, and hands on what `parse` makes of them
/// (their contents come in the order of the paths) when it is something else than `current` or than
/// what was handed on last.
///
/// An error of `parse`, in words without a secret, is logged once as long as it stays the same.
pub async fn watch<T: PartialEq>(
    paths: &[PathBuf],
    mut current: T,
    parse: impl Fn(&[Content]) -> Result<T, String>,
    mut changed: impl FnMut(&T),
) -> Infallible {
    let mut seen = None;
    let mut told = None;
    loop {
        let now = stamps(paths);
        if seen.as_ref() != Some(&now) {
            tokio::time::sleep(SETTLE).await;
            if stamps(paths) != now {
                continue;
            }
            let contents: Vec<Content> = paths.iter().map(|path| read(path)).collect();
            // Written again while it was read: what was read is of neither version.
            if stamps(paths) != now {
                continue;
            }
            seen = Some(now);
            match parse(&contents) {
                Ok(value) if value == current => told = None,
                Ok(value) => {
                    told = None;
                    changed(&value);
                    current = value;
                }
                Err(why) => {
                    if told.as_ref() != Some(&why) {
                        tracing::warn!(why, "a changed file cannot be used; what it said before goes on");
                        told = Some(why);
                    }
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn read(path: &Path) -> Content {
    let file = file::open(path).ok()?;
    // A pipe or a device is no file that somebody rewrites, and might never end.
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file::content(file, MAX_BYTES).ok()?
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::sync::mpsc;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("attache-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    /// `{token}` in braces, as JSON would be, or a bare token in the second file, which wins.
    fn parse(contents: &[Content]) -> Result<String, String> {
        let text = |at: usize| {
            let bytes = contents[at].as_ref()?;
            Some(std::str::from_utf8(bytes).unwrap().trim().to_owned())
        };
        if let Some(token) = text(1).filter(|token| !token.is_empty()) {
            return Ok(token);
        }
        let bootstrap = text(0).ok_or("no bootstrap file")?;
        let inner = bootstrap
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        inner.map(str::to_owned).ok_or_else(|| "half a file".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_file_is_no_change_and_a_whole_one_is_handed_on_once() {
        let folder = Folder::new("credentials");
        let paths = [folder.file("bootstrap.json"), folder.file("si_token")];
        std::fs::write(&paths[0], "{one}").unwrap();
        let (sender, mut news) = mpsc::unbounded_channel();
        let watching = watch(&paths, "one".to_owned(), parse, |token| {
            sender.send(token.clone()).unwrap();
        });
        let story = async {
            // The same content again, as a renewal that renewed nothing.
            std::fs::write(&paths[0], "{one}").unwrap();
            tokio::time::sleep(POLL * 3).await;
            assert!(news.try_recv().is_err());
            // Rewritten in place, with a pause in the middle.
            let mut file = std::fs::File::create(&paths[0]).unwrap();
            tokio::time::sleep(POLL * 3).await;
            file.write_all(b"{tw").unwrap();
            tokio::time::sleep(POLL * 3).await;
            assert!(news.try_recv().is_err());
            file.write_all(b"o}").unwrap();
            drop(file);
            assert_eq!(news.recv().await.unwrap(), "two");
            // A second file appears, is replaced by renaming, and goes again.
            std::fs::write(&paths[1], "three\n").unwrap();
            assert_eq!(news.recv().await.unwrap(), "three");
            std::fs::write(folder.file("new"), "four\n").unwrap();
            std::fs::rename(folder.file("new"), &paths[1]).unwrap();
            assert_eq!(news.recv().await.unwrap(), "four");
            std::fs::remove_file(&paths[0]).unwrap();
            std::fs::remove_file(&paths[1]).unwrap();
            tokio::time::sleep(POLL * 3).await;
            assert!(news.try_recv().is_err());
        };
        tokio::select! {
            () = story => {}
            never = watching => match never {},
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_before_the_watch_began_is_seen_and_a_pipe_is_not_read() {
        let folder = Folder::new("credentials-first");
        let paths = [folder.file("bootstrap.json"), folder.file("pipe")];
        std::fs::write(&paths[0], "{two}").unwrap();
        nix::unistd::mkfifo(&paths[1], nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (sender, mut news) = mpsc::unbounded_channel();
        let watching = watch(&paths, "one".to_owned(), parse, |token| {
            sender.send(token.clone()).unwrap();
        });
        tokio::select! {
            token = news.recv() => assert_eq!(token.unwrap(), "two"),
            never = watching => match never {},
        }
    }
}
