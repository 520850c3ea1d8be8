//! The secrets of one check. Several are valid at once, so that they can be changed without a refused request.
//!
//! A presented token is compared by its HMAC under a random key of the process, in constant time: the time it takes shows neither content
//! nor length of a secret.

use super::config::{Algorithm, Config, Problem};
use crate::metrics::SecretMetrics;
use crate::reloaded::{Change, Reloaded};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac::{self, HMAC_SHA1_FOR_LEGACY_USE_ONLY, HMAC_SHA256, HMAC_SHA512};
use ring::rand::SystemRandom;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A shorter secret can be guessed.
const MIN_BYTES: usize = 8;
/// How often the files are read.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How the secrets of a check are used.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Presented as they are.
    Token,
    /// Presented behind this user's name and a colon.
    Password(String),
    /// Keys of signatures.
    Signature(Algorithm),
    /// Keys of Standard Webhooks: SHA-256, the key in Base64 behind `whsec_`.
    StandardWebhooks,
}

/// One secret, ready for use.
enum Key {
    /// The HMAC of a token under the key of the process.
    Token(hmac::Tag),
    Signature(hmac::Key),
}

/// The secrets of one check.
pub struct Secrets {
    /// The setting, for the log.
    at: String,
    process_key: hmac::Key,
    inline: Vec<Key>,
    files: Vec<(PathBuf, Reloaded<Vec<Key>, String>)>,
    metrics: SecretMetrics,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Reads the secrets of `config`, which stands at the setting `at`.
    pub fn open(config: &Config, kind: &Kind, at: &str, metrics: &SecretMetrics) -> Result<Self, Problem> {
        let process_key = hmac::Key::generate(HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| Problem::new("type", "the system gives no random numbers"))?;
        let mut secrets =
            Self { at: at.to_owned(), process_key, inline: Vec::new(), files: Vec::new(), metrics: metrics.clone() };
        let Some((inline, files)) = config.secrets() else { return Ok(secrets) };
        for (index, secret) in inline.0.iter().enumerate() {
            let key = key(secret.reveal(), kind, &secrets.process_key);
            secrets.inline.push(key.map_err(|problem| Problem::new(format!("secrets.{index}"), problem))?);
        }
        for (index, path) in files.0.iter().enumerate() {
            let (kind, process_key) = (kind.clone(), secrets.process_key.clone());
            let parse = move |contents: &[crate::reloaded::Content]| {
                contents.iter().try_fold(Vec::new(), |mut all, content| {
                    all.extend(keys(content.text()?, &kind, &process_key)?);
                    Ok(all)
                })
            };
            let file = Reloaded::open(vec![path.clone()], parse).map_err(|problem: String| {
                Problem::new(format!("secret_files.{index}"), format!("{}: {problem}", path.display()))
            })?;
            secrets.files.push((path.clone(), file));
        }
        Ok(secrets)
    }

    /// Whether there are files to poll.
    pub fn are_in_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Whether `presented` is one of the secrets. Takes the same time whichever it is, and whether it is one at all.
    pub fn contain(&self, presented: &[u8]) -> bool {
        self.any(|key| match key {
            Key::Token(tag) => hmac::verify(&self.process_key, presented, tag.as_ref()).is_ok(),
            Key::Signature(_) => false,
        })
    }

    /// Whether one of the secrets made one of the signatures of the parts, one after the other.
    pub fn signed(&self, parts: &[&[u8]], signatures: &[Vec<u8>]) -> bool {
        let text = parts.concat();
        self.any(|key| match key {
            Key::Signature(key) => {
                signatures.iter().fold(false, |found, signature| found | hmac::verify(key, &text, signature).is_ok())
            }
            Key::Token(_) => false,
        })
    }

    /// Tries all keys, also behind one that matches.
    fn any(&self, matches: impl Fn(&Key) -> bool) -> bool {
        let inline = self.inline.iter().fold(false, |found, key| found | matches(key));
        self.files
            .iter()
            .fold(inline, |found, (_, file)| file.current().iter().fold(found, |found, key| found | matches(key)))
    }

    /// How many files have a present content that cannot be used.
    fn count_unusable(&self) -> usize {
        self.files.iter().filter(|(_, file)| file.is_unusable()).count()
    }

    /// Reads the files again. A file that cannot be used leaves its secrets as they were.
    fn poll(&self) {
        for (path, file) in &self.files {
            let path = path.display();
            match file.poll(|_| Ok(())) {
                Change::None => {}
                Change::Replaced => {
                    self.metrics.reloads.inc();
                    tracing::info!(setting = self.at, %path, count = file.current().len(), "secrets reloaded");
                }
                Change::Unusable(error) => {
                    self.metrics.failures.inc();
                    tracing::error!(setting = self.at, %path, error, "cannot reload secrets; the old ones stay valid");
                }
            }
        }
    }
}

/// Polls the files of all checks, for ever.
pub async fn watch(all: Vec<Arc<Secrets>>) {
    let Some(unusable) = all.first().map(|secrets| secrets.metrics.unusable.clone()) else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let polled = all.clone();
        // It fails only when the runtime ends.
        let _ = tokio::task::spawn_blocking(move || polled.iter().for_each(|secrets| secrets.poll())).await;
        unusable.set(all.iter().map(|secrets| secrets.count_unusable() as i64).sum());
    }
}

/// One secret a line; empty lines do not count.
fn keys(text: &str, kind: &Kind, process_key: &hmac::Key) -> Result<Vec<Key>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    let keys = lines
        .map(|(index, line)| key(line, kind, process_key).map_err(|problem| format!("line {}: {problem}", index + 1)));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err("holds no secret; expected one on each line".into()) } else { Ok(keys) }
}

fn key(secret: &str, kind: &Kind, process_key: &hmac::Key) -> Result<Key, String> {
    if secret.len() < MIN_BYTES {
        return Err(format!("a secret of {} bytes can be guessed; use {MIN_BYTES} or more", secret.len()));
    }
    Ok(match kind {
        Kind::Token => Key::Token(hmac::sign(process_key, secret.as_bytes())),
        Kind::Password(user) => Key::Token(hmac::sign(process_key, format!("{user}:{secret}").as_bytes())),
        Kind::Signature(algorithm) => Key::Signature(signing_key(secret, *algorithm)),
        Kind::StandardWebhooks => Key::Signature(standard_webhooks_key(secret)?),
    })
}

/// The key that a secret of signatures stands for.
pub fn signing_key(secret: &str, algorithm: Algorithm) -> hmac::Key {
    hmac::Key::new(algorithm.function(), secret.as_bytes())
}

/// The key in a secret of Standard Webhooks.
pub fn standard_webhooks_key(secret: &str) -> Result<hmac::Key, String> {
    let decoded = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).unwrap_or_default();
    if decoded.len() < MIN_BYTES {
        return Err("expected `whsec_` and at least 8 bytes in Base64".into());
    }
    Ok(hmac::Key::new(HMAC_SHA256, &decoded))
}

impl Algorithm {
    fn function(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => HMAC_SHA256,
            Self::Sha512 => HMAC_SHA512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use std::path::Path;

    impl Secrets {
        /// One key of signatures, however short.
        pub fn short(key: &str, algorithm: Algorithm) -> Self {
            Self {
                at: String::new(),
                process_key: hmac::Key::new(HMAC_SHA256, b""),
                inline: vec![Key::Signature(hmac::Key::new(algorithm.function(), key.as_bytes()))],
                files: Vec::new(),
                metrics: SecretMetrics::default(),
            }
        }
    }

    fn open(file: &Path) -> Result<Secrets, Problem> {
        let config = serde_json::json!({ "type": "bearer", "secrets": ["inline-secret"], "secret_files": file });
        let config: Config = serde_json::from_value(config).unwrap();
        Secrets::open(&config, &Kind::Token, "ingress.auth.0", &Metrics::default().ingress.secrets)
    }

    #[test]
    fn a_changed_file_is_adopted_once_it_stays_the_same_and_a_bad_one_never() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        // Editors on Windows begin a text with a byte order mark.
        std::fs::write(&path, "\u{feff}first-secret\r\n\nsecond-secret").unwrap();
        let secrets = open(&path).unwrap();
        let held = |texts: &[&str]| texts.iter().map(|text| secrets.contain(text.as_bytes())).collect::<Vec<_>>();
        let texts = ["inline-secret", "first-secret", "second-secret", "third-secret", "third-se"];
        assert_eq!(held(&texts), [true, true, true, false, false]);
        assert!(!secrets.contain("\u{feff}first-secret".as_bytes()));

        std::fs::write(&path, "second-secret\nthird-se").unwrap();
        secrets.poll();
        std::fs::write(&path, "second-secret\nthird-secret\n").unwrap();
        secrets.poll();
        assert_eq!(held(&texts), [true, true, true, false, false], "half a file was adopted");
        secrets.poll();
        assert_eq!(held(&texts), [true, false, true, true, false]);
        assert_eq!((secrets.metrics.reloads.get(), secrets.metrics.failures.get()), (1, 0));

        for bad in [Some(""), Some("\n\n"), Some("short"), Some("third-secret\nshort"), None] {
            match bad {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let before = secrets.metrics.failures.get();
            secrets.poll();
            secrets.poll();
            assert_eq!(held(&texts), [true, false, true, true, false], "{bad:?}");
            assert!(secrets.metrics.failures.get() > before, "{bad:?}");
        }
        std::fs::write(&path, "first-secret").unwrap();
        secrets.poll();
        secrets.poll();
        assert_eq!(held(&texts), [true, true, false, false, false]);
    }

    #[test]
    fn tokens_are_compared_by_digests_of_one_length_under_a_key_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        std::fs::write(&path, "a-much-longer-secret-than-the-inline-one").unwrap();
        let (one, other) = (open(&path).unwrap(), open(&path).unwrap());
        let digests = |secrets: &Secrets| -> Vec<Vec<u8>> {
            let tag = |key: &Key| match key {
                Key::Token(tag) => tag.as_ref().to_vec(),
                Key::Signature(_) => unreachable!(),
            };
            let files = secrets.files.iter().flat_map(|(_, file)| file.current().iter().map(tag).collect::<Vec<_>>());
            secrets.inline.iter().map(tag).chain(files).collect()
        };
        assert_eq!(digests(&one).iter().map(Vec::len).collect::<Vec<_>>(), [32, 32]);
        assert!(digests(&one).iter().zip(digests(&other)).all(|(one, other)| *one != other));
        assert!(!format!("{one:?}").contains("secret-than"));
    }

    #[test]
    fn short_and_missing_secrets_are_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        let missing = open(&path).unwrap_err();
        assert!(missing.key == "secret_files.0" && missing.text.contains("cannot be read"), "{missing:?}");
        std::fs::write(&path, "long enough\n1234567\n").unwrap();
        let short = open(&path).unwrap_err();
        assert!(short.text.contains("line 2: a secret of 7 bytes") && !short.text.contains("1234567"), "{short:?}");
        for (bytes, expected) in [(&b"\n"[..], "holds no secret"), (b"\xff\xfef\0i\0r\0s\0t\0", "not UTF-8")] {
            std::fs::write(&path, bytes).unwrap();
            let problem = open(&path).unwrap_err();
            assert!(problem.text.contains(expected), "{problem:?}");
        }
    }
}
