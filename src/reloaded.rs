//! A value made from files, made again when the files change.
//!
//! Changes are found by content, so that a rename, a write in place and the symbolic links of a mounted Kubernetes secret all look the
//! same. A change counts once two reads in a row agree, because a file may be half written. A change that cannot be used leaves the value
//! as it was.

use parking_lot::{Mutex, RwLock};
use ring::digest::{Context, SHA256};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file that is read, in bytes: larger than any bundle of certificates or list of secrets.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The content of one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// Where the file is.
    pub path: PathBuf,
    /// Its bytes, or why they cannot be read.
    pub bytes: Result<Vec<u8>, String>,
}

/// What [`Reloaded::poll`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Change<E> {
    /// The files are as before, or still changing.
    None,
    /// The value was replaced.
    Replaced,
    /// The files changed and cannot be used; said once for each content.
    Unusable(E),
}

/// A value of type `T` made from files.
pub struct Reloaded<T, E> {
    paths: Vec<PathBuf>,
    parse: Box<Parse<T, E>>,
    current: RwLock<Arc<T>>,
    digests: Mutex<Digests>,
}

type Parse<T, E> = dyn Fn(&[Content]) -> Result<T, E> + Send + Sync;

type Digest = [u8; 32];

struct Digests {
    /// Of the content in use.
    used: Digest,
    /// Of the last read.
    read: Digest,
    /// Of the content that was found unusable.
    refused: Option<Digest>,
}

impl<T, E> Reloaded<T, E> {
    /// Reads the files. `parse` gets their contents in the order of `paths`.
    pub fn open(
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Content]) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let contents = read_all(&paths);
        let current = RwLock::new(Arc::new(parse(&contents)?));
        let used = digest(&contents);
        let digests = Mutex::new(Digests { used, read: used, refused: None });
        Ok(Self { paths, parse: Box::new(parse), current, digests })
    }

    /// The value in use.
    pub fn current(&self) -> Arc<T> {
        self.current.read().clone()
    }

    /// Whether the present content of the files cannot be used.
    pub fn is_unusable(&self) -> bool {
        self.digests.lock().refused.is_some()
    }

    /// Reads the files again, which may block, and replaces the value if they changed and `accept` takes the new value. A content that
    /// `accept` refuses is tried again at each poll: a certificate that is not valid yet will be.
    pub fn poll(&self, accept: impl FnOnce(&T) -> Result<(), E>) -> Change<E> {
        let contents = read_all(&self.paths);
        let digest = digest(&contents);
        let mut digests = self.digests.lock();
        let settled = std::mem::replace(&mut digests.read, digest) == digest;
        if digest == digests.used {
            digests.refused = None;
            return Change::None;
        }
        if !settled {
            return Change::None;
        }
        let value = (self.parse)(&contents).and_then(|value| accept(&value).map(|()| value));
        match value {
            Ok(value) => {
                *self.current.write() = Arc::new(value);
                *digests = Digests { used: digest, read: digest, refused: None };
                Change::Replaced
            }
            Err(_) if digests.refused == Some(digest) => Change::None,
            Err(error) => {
                digests.refused = Some(digest);
                Change::Unusable(error)
            }
        }
    }
}

impl<T: fmt::Debug, E> fmt::Debug for Reloaded<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("paths", &self.paths).field("current", &self.current).finish_non_exhaustive()
    }
}

impl Content {
    /// The text of the file, without a byte order mark in front of it.
    pub fn text(&self) -> Result<&str, String> {
        let text = std::str::from_utf8(self.bytes.as_deref()?).map_err(|_| "is not UTF-8 text".to_owned())?;
        Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
    }
}

fn read_all(paths: &[PathBuf]) -> Vec<Content> {
    paths.iter().map(|path| Content { path: path.clone(), bytes: read(path) }).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        Err("is larger than 4 MiB; is it the right file?".into())
    } else {
        Ok(bytes)
    }
}

fn digest(contents: &[Content]) -> Digest {
    let mut context = Context::new(&SHA256);
    for Content { bytes, .. } in contents {
        let (kind, bytes) = match bytes {
            Ok(bytes) => (0_u8, bytes.as_slice()),
            Err(cause) => (1, cause.as_bytes()),
        };
        context.update(&[kind]);
        context.update(&(bytes.len() as u64).to_le_bytes());
        context.update(bytes);
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Content]) -> Result<u32, String> {
        contents.iter().map(|content| content.text()?.trim().parse::<u32>().map_err(|error| error.to_string())).sum()
    }

    #[test]
    fn a_change_is_used_once_two_reads_agree_and_never_if_it_is_unusable() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        std::fs::write(&paths[0], "\u{feff}1\n").unwrap();
        assert!(Reloaded::open(paths.to_vec(), number).unwrap_err().contains("cannot be read"));
        std::fs::write(&paths[1], "10").unwrap();
        let value = Reloaded::open(paths.to_vec(), number).unwrap();
        let poll = || value.poll(|value| if *value < 1000 { Ok(()) } else { Err("too large".to_owned()) });
        assert_eq!((*value.current(), poll()), (11, Change::None));

        std::fs::write(&paths[1], "2").unwrap();
        assert_eq!(poll(), Change::None, "half a file was used");
        std::fs::write(&paths[1], "20").unwrap();
        assert_eq!((poll(), *value.current()), (Change::None, 11));
        assert_eq!((poll(), *value.current()), (Change::Replaced, 21));

        std::fs::write(&paths[1], "x").unwrap();
        assert_eq!(poll(), Change::None);
        assert!(matches!(poll(), Change::Unusable(_)));
        assert_eq!((poll(), *value.current()), (Change::None, 21), "said twice");
        assert!(value.is_unusable());
        std::fs::write(&paths[1], "2000").unwrap();
        assert_eq!((poll(), poll()), (Change::None, Change::Unusable("too large".into())));
        std::fs::remove_file(&paths[1]).unwrap();
        assert!(
            matches!((poll(), poll()), (Change::None, Change::Unusable(error)) if error.contains("cannot be read"))
        );
        std::fs::write(&paths[1], "20").unwrap();
        assert_eq!((poll(), poll(), *value.current()), (Change::None, Change::None, 21));
        assert!(!value.is_unusable());
    }
}
