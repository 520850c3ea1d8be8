//! The secrets of one check, of which several are valid at once, so that they can be changed without a refused request: inline
//! ones, and files that are read again when they change.
//!
//! What is presented is never compared with a secret itself: both go through an HMAC with a key of this process first, so that
//! neither content nor length shows in the time that it takes.

use super::settings::{Algorithm, Config, Problem};
use crate::metrics::SecretMetrics;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::SystemRandom;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use subtle::{Choice, ConstantTimeEq};

/// A shorter secret can be guessed.
const SHORTEST: usize = 8;
/// How often files are looked at. What has changed is adopted when it is the same the next time: it may be half written.
const LOOK: Duration = Duration::from_secs(2);
/// No file of secrets is larger.
const LARGEST: u64 = 1 << 20;

/// What secrets are used for.
#[derive(Debug)]
pub enum Kind {
    /// They are sent as they are.
    Token,
    /// They are sent behind this user's name.
    Password(String),
    /// They sign.
    Hmac(Algorithm),
    /// They sign as Standard Webhooks has it: with SHA-256, the key in Base64 behind `whsec_`.
    StandardWebhooks,
}

/// One secret, ready for use.
enum Key {
    /// Its HMAC with the key of the process.
    Token(hmac::Tag),
    Signing(hmac::Key),
}

/// The secrets of one check.
pub struct Secrets {
    /// The setting, for the log.
    at: String,
    kind: Kind,
    /// The key of the process.
    blind: hmac::Key,
    inline: Vec<Arc<Key>>,
    files: Mutex<Vec<Watched>>,
    current: RwLock<Arc<[Arc<Key>]>>,
    metrics: SecretMetrics,
}

/// One file.
struct Watched {
    path: PathBuf,
    keys: Vec<Arc<Key>>,
    /// HMACs of what was read: what the keys are from, and what was different the last time.
    content: hmac::Tag,
    changed: Option<hmac::Tag>,
    /// What is wrong with the file now.
    trouble: Option<String>,
}

/// What a look at a file shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// What was there before.
    Same,
    /// Something else, which may be half written yet.
    Changing,
    /// Other secrets.
    Changed,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("at", &self.at).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Reads those of `config`, which stands at the setting `at`.
    pub fn open(config: &Config, kind: Kind, at: &str, metrics: &SecretMetrics) -> Result<Self, Problem> {
        let blind = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| Problem::new("type", "the system gives no random numbers"))?;
        let mut inline = Vec::new();
        for (index, secret) in config.secrets.0.iter().enumerate() {
            let key = key(secret.reveal(), &kind, &blind);
            inline.push(key.map_err(|problem| Problem::new(&format!("secrets.{index}"), problem))?);
        }
        let mut files = Vec::new();
        for (index, path) in config.secret_files.0.iter().enumerate() {
            let problem =
                |text: String| Problem::new(&format!("secret_files.{index}"), format!("{}: {text}", path.display()));
            let text = read(path).map_err(problem)?;
            let content = hmac::sign(&blind, text.as_bytes());
            let keys = keys(&text, &kind, &blind).map_err(problem)?;
            files.push(Watched { path: path.clone(), keys, content, changed: None, trouble: None });
        }
        let current = all(&inline, &files);
        Ok(Self {
            at: at.to_owned(),
            kind,
            blind,
            inline,
            files: Mutex::new(files),
            current: RwLock::new(current),
            metrics: metrics.clone(),
        })
    }

    /// One secret, however short.
    #[cfg(test)]
    pub fn unchecked(secret: &str, kind: Kind) -> Self {
        let Kind::Hmac(algorithm) = kind else { panic!("only for signatures") };
        let blind = hmac::Key::new(hmac::HMAC_SHA256, b"");
        let inline = vec![Arc::new(Key::Signing(hmac::Key::new(algorithm.function(), secret.as_bytes())))];
        let (current, files) = (all(&inline, &[]), Mutex::default());
        Self {
            at: String::new(),
            kind,
            blind,
            inline,
            files,
            current: RwLock::new(current),
            metrics: SecretMetrics::default(),
        }
    }

    /// Whether there are files to look at.
    pub fn are_watched(&self) -> bool {
        !self.files.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether this is one of them. Takes the same time whichever it is, and whether it is one at all.
    pub fn hold(&self, presented: &[u8]) -> bool {
        let presented = match &self.kind {
            Kind::Token | Kind::Password(_) => hmac::sign(&self.blind, presented),
            Kind::Hmac(_) | Kind::StandardWebhooks => return false,
        };
        self.any(|key| match key {
            Key::Token(tag) => tag.as_ref().ct_eq(presented.as_ref()),
            Key::Signing(_) => Choice::from(0),
        })
    }

    /// Whether one of them made one of these signatures of these texts, one after the other.
    pub fn signed(&self, texts: &[&[u8]], signatures: &[Vec<u8>]) -> bool {
        self.any(|key| match key {
            Key::Signing(key) => {
                let mut context = hmac::Context::with_key(key);
                texts.iter().for_each(|text| context.update(text));
                let right = context.sign();
                let same = signatures.iter().map(|signature| right.as_ref().ct_eq(signature));
                same.fold(Choice::from(0), |found, same| found | same)
            }
            Key::Token(_) => Choice::from(0),
        })
    }

    fn any(&self, matches: impl Fn(&Key) -> Choice) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.iter().fold(Choice::from(0), |found, key| found | matches(key)).into()
    }

    /// Looks whether the files have changed. What cannot be used changes nothing, and is told once.
    fn look(&self) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut adopted = false;
        for file in files.iter_mut() {
            match file.look(&self.kind, &self.blind) {
                Ok(Seen::Changing) => {}
                Ok(seen) => {
                    let (changed, mended) = (seen == Seen::Changed, file.trouble.take().is_some());
                    if changed || mended {
                        let (path, count) = (file.path.display(), file.keys.len());
                        tracing::info!(setting = self.at, %path, count, "secrets are read from the file again");
                    }
                    if changed {
                        self.metrics.reloads.inc();
                    }
                    adopted |= changed;
                }
                Err(trouble) => {
                    self.metrics.failures.inc();
                    if file.trouble.as_ref() != Some(&trouble) {
                        let path = file.path.display();
                        tracing::error!(setting = self.at, %path, trouble, "secrets cannot be read again; those read before stay valid");
                    }
                    file.trouble = Some(trouble);
                }
            }
        }
        if adopted {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = all(&self.inline, &files);
        }
    }
}

impl Watched {
    /// What is in the file now. Other secrets are the file's from the second look at them on.
    fn look(&mut self, kind: &Kind, blind: &hmac::Key) -> Result<Seen, String> {
        let text = read(&self.path)?;
        let content = hmac::sign(blind, text.as_bytes());
        if content.as_ref() == self.content.as_ref() {
            self.changed = None;
            return Ok(Seen::Same);
        }
        let seen = self.changed.replace(content).is_some_and(|changed| changed.as_ref() == content.as_ref());
        if !seen {
            return Ok(Seen::Changing);
        }
        self.keys = keys(&text, kind, blind)?;
        self.content = content;
        self.changed = None;
        Ok(Seen::Changed)
    }
}

/// Looks at the files for ever.
pub async fn watch(all: Vec<Arc<Secrets>>) {
    if all.is_empty() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        let looked = all.clone();
        // It fails only when the runtime ends.
        let _ = tokio::task::spawn_blocking(move || looked.iter().for_each(|secrets| secrets.look())).await;
    }
}

fn all(inline: &[Arc<Key>], files: &[Watched]) -> Arc<[Arc<Key>]> {
    inline.iter().chain(files.iter().flat_map(|file| &file.keys)).cloned().collect()
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > LARGEST { Err("is no file of secrets: it is larger than 1 MiB".into()) } else { Ok(text) }
}

/// One secret a line; empty lines do not count.
fn keys(text: &str, kind: &Kind, blind: &hmac::Key) -> Result<Vec<Arc<Key>>, String> {
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        keys.push(key(line, kind, blind).map_err(|problem| format!("line {}: {problem}", index + 1))?);
    }
    if keys.is_empty() { Err("holds no secret; expected one on each line".into()) } else { Ok(keys) }
}

fn key(secret: &str, kind: &Kind, blind: &hmac::Key) -> Result<Arc<Key>, String> {
    if secret.len() < SHORTEST {
        return Err(format!("a secret of {} bytes can be guessed; it has to have {SHORTEST} or more", secret.len()));
    }
    Ok(Arc::new(match kind {
        Kind::Token => Key::Token(hmac::sign(blind, secret.as_bytes())),
        Kind::Password(user) => Key::Token(hmac::sign(blind, format!("{user}:{secret}").as_bytes())),
        Kind::Hmac(algorithm) => Key::Signing(hmac::Key::new(algorithm.function(), secret.as_bytes())),
        Kind::StandardWebhooks => {
            let decoded = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret));
            let decoded = decoded.ok().filter(|bytes| bytes.len() >= SHORTEST);
            let problem = || "expected `whsec_` and at least 8 bytes in Base64".to_owned();
            Key::Signing(hmac::Key::new(hmac::HMAC_SHA256, &decoded.ok_or_else(problem)?))
        }
    }))
}

impl Algorithm {
    fn function(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn open(file: &Path) -> Result<Secrets, Problem> {
        let config = serde_json::json!({ "type": "bearer", "secrets": ["inline-secret"], "secret_files": file });
        let config: Config = serde_json::from_value(config).unwrap();
        Secrets::open(&config, Kind::Token, "ingress.auth.0", &Metrics::default().ingress.secrets)
    }

    #[test]
    fn a_changed_file_is_adopted_once_it_stays_the_same_and_a_bad_one_never() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        std::fs::write(&path, "first-secret\r\n\nsecond-secret").unwrap();
        let secrets = open(&path).unwrap();
        let held = |texts: &[&str]| texts.iter().map(|text| secrets.hold(text.as_bytes())).collect::<Vec<_>>();
        let texts = ["inline-secret", "first-secret", "second-secret", "third-secret", "third-se"];
        assert_eq!(held(&texts), [true, true, true, false, false]);

        std::fs::write(&path, "second-secret\nthird-se").unwrap();
        secrets.look();
        std::fs::write(&path, "second-secret\nthird-secret\n").unwrap();
        secrets.look();
        assert_eq!(held(&texts), [true, true, true, false, false], "half a file was adopted");
        secrets.look();
        assert_eq!(held(&texts), [true, false, true, true, false]);
        assert_eq!((secrets.metrics.reloads.get(), secrets.metrics.failures.get()), (1, 0));

        for bad in [Some(""), Some("\n\n"), Some("short"), Some("third-secret\nshort"), None] {
            match bad {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let before = secrets.metrics.failures.get();
            secrets.look();
            secrets.look();
            assert_eq!(held(&texts), [true, false, true, true, false], "{bad:?}");
            assert!(secrets.metrics.failures.get() > before, "{bad:?}");
        }
        std::fs::write(&path, "first-secret").unwrap();
        secrets.look();
        secrets.look();
        assert_eq!(held(&texts), [true, true, false, false, false]);
    }

    #[test]
    fn what_is_compared_is_of_one_length_and_says_nothing_of_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        std::fs::write(&path, "a-much-longer-secret-than-the-inline-one").unwrap();
        let (one, other) = (open(&path).unwrap(), open(&path).unwrap());
        let digests = |secrets: &Secrets| -> Vec<Vec<u8>> {
            let tag = |key: &Arc<Key>| match &**key {
                Key::Token(tag) => tag.as_ref().to_vec(),
                Key::Signing(_) => unreachable!(),
            };
            secrets.current.read().unwrap().iter().map(tag).collect()
        };
        assert!(digests(&one).iter().all(|digest| digest.len() == 32));
        // Each process, here each value, has a key of its own: nobody can work out which texts share a beginning of the digest.
        assert!(digests(&one).iter().zip(digests(&other)).all(|(one, other)| *one != other));
        assert!(!format!("{one:?}").contains("secret-than"));
    }

    #[test]
    fn what_can_be_guessed_or_is_not_there_is_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        let gone = open(&path).unwrap_err();
        assert!(gone.key == "secret_files.0" && gone.text.contains("cannot be read"), "{gone:?}");
        std::fs::write(&path, "long enough\n1234567\n").unwrap();
        let short = open(&path).unwrap_err();
        assert!(short.text.contains("line 2: a secret of 7 bytes") && !short.text.contains("1234567"), "{short:?}");
        std::fs::write(&path, "\n").unwrap();
        assert!(open(&path).unwrap_err().text.contains("holds no secret"));
    }
}
