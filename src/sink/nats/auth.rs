//! Who we are to the server. Checked once at load; files are read again at every connect, so that a rotated password or
//! renewed credentials take effect without a restart.

use crate::setting::Secret;
use crate::sink::SetupError;
use crate::sink::nats::Config;
use async_nats::Auth;
use nkeys::{KeyPair, KeyPairType};
use std::path::PathBuf;

/// The one way of authentication that the settings name.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Anonymous,
    User { user: String, password: Source },
    Token(Source),
    Nkey(Source),
    Credentials(PathBuf),
}

/// A secret called `name`, as a value or in a file.
#[derive(Debug, Clone)]
pub(super) struct Source {
    name: &'static str,
    value: Option<Secret>,
    file: Option<PathBuf>,
}

impl Identity {
    /// The identity `config` names. Refuses more than one, unreadable files and malformed keys.
    pub(super) fn from_config(config: &Config) -> Result<Self, SetupError> {
        let password = Source::of("password", &config.password, &config.password_file);
        let token = Source::of("token", &config.token, &config.token_file);
        let nkey = Source::of("nkey", &config.nkey, &config.nkey_file);

        let mut named = Vec::new();
        match (config.user.clone(), password) {
            (Some(user), Some(password)) => named.push(("user", Self::User { user, password })),
            (Some(_), None) => return Err(SetupError("`user` needs `password` or `password_file`".to_owned())),
            (None, Some(_)) => {
                return Err(SetupError("`password` needs `user`; for a token alone use `token`".to_owned()));
            }
            (None, None) => {}
        }
        named.extend(token.map(|token| ("token", Self::Token(token))));
        named.extend(nkey.map(|seed| ("nkey", Self::Nkey(seed))));
        named.extend(config.credentials_file.clone().map(|path| ("credentials_file", Self::Credentials(path))));

        let keys: Vec<_> = named.iter().map(|(key, _)| format!("`{key}`")).collect();
        if keys.len() > 1 {
            return Err(SetupError(format!("{} are set together; keep one way to authenticate", keys.join(" and "))));
        }
        let identity = named.pop().map_or(Self::Anonymous, |(_, identity)| identity);
        identity.answer(b"")?;
        Ok(identity)
    }

    /// What to send when the server challenges with `nonce`.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<Auth, SetupError> {
        let mut auth = Auth::new();
        match self {
            Self::Anonymous => {}
            Self::User { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.read()?.reveal().to_owned());
            }
            Self::Token(token) => auth.token = Some(token.read()?.reveal().to_owned()),
            Self::Nkey(seed) => {
                let key = user_key(seed.name, seed.read()?.reveal())?;
                auth.nkey = Some(key.public_key());
                auth.signature = Some(sign(&key, nonce)?);
            }
            Self::Credentials(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    SetupError(format!("`credentials_file`: cannot read {}: {error}", path.display()))
                })?;
                let (jwt, seed) = parse_credentials(&text).ok_or_else(|| {
                    SetupError(format!(
                        "`credentials_file`: {} lacks a user JWT or an nkey seed between its BEGIN and END lines",
                        path.display()
                    ))
                })?;
                auth.signature = Some(sign(&user_key("credentials_file", seed)?, nonce)?);
                auth.jwt = Some(jwt.to_owned());
            }
        }
        Ok(auth)
    }
}

impl Source {
    fn of(name: &'static str, value: &Option<Secret>, file: &Option<PathBuf>) -> Option<Self> {
        let given = value.is_some() || file.is_some();
        given.then(|| Self { name, value: value.clone(), file: file.clone() })
    }

    fn read(&self) -> Result<Secret, SetupError> {
        let secret = Secret::resolve(self.name, self.value.as_ref(), self.file.as_deref())?;
        secret.ok_or_else(|| SetupError(format!("`{}` is not set", self.name)))
    }
}

/// The error names the setting, never the seed.
fn user_key(name: &str, seed: &str) -> Result<KeyPair, SetupError> {
    match KeyPair::from_seed(seed.trim()) {
        Ok(key) if key.key_pair_type() == KeyPairType::User => Ok(key),
        _ => Err(SetupError(format!("`{name}`: not the seed of a user nkey, 58 characters that begin with `SU`"))),
    }
}

fn sign(key: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>, SetupError> {
    key.sign(nonce).map_err(|_| SetupError("cannot sign the server's nonce with the nkey".to_owned()))
}

/// The JWT and the seed of a `.creds` file: the lines that follow its two `-----BEGIN …` lines.
fn parse_credentials(text: &str) -> Option<(&str, &str)> {
    let block = |title| {
        let mut lines = text
            .lines()
            .map(str::trim)
            .skip_while(move |line| !(line.starts_with("-----BEGIN") && line.contains(title)));
        lines.nth(1).filter(|line| !line.is_empty() && !line.starts_with('-'))
    };
    Some((block("JWT")?, block("SEED")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(toml: &str) -> Result<Identity, String> {
        use figment::providers::{Format, Toml};
        let config: Config = figment::Figment::from(Toml::string(toml)).extract().unwrap();
        Identity::from_config(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn each_way_to_authenticate_answers_a_challenge() {
        assert!(matches!(identity("").unwrap(), Identity::Anonymous));
        let auth = identity("user = 'a'\npassword = 'b'").unwrap().answer(b"n").unwrap();
        assert_eq!((auth.username.as_deref(), auth.password.as_deref()), (Some("a"), Some("b")));
        assert_eq!(identity("token = 't'").unwrap().answer(b"n").unwrap().token.as_deref(), Some("t"));

        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let auth = identity(&format!("nkey = '{seed}'")).unwrap().answer(b"nonce").unwrap();
        assert_eq!(auth.nkey, Some(key.public_key()));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user.creds");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\r\neyJ.x.y\r\n------END NATS USER JWT------\r\n\r\n*** IMPORTANT ***\r\n-----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
        );
        std::fs::write(&path, text).unwrap();
        let auth = identity(&format!("credentials_file = '{}'", path.display())).unwrap().answer(b"nonce").unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("eyJ.x.y"));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
    }

    #[test]
    fn a_rotated_file_takes_effect_at_the_next_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "old\n").unwrap();
        let identity = identity(&format!("token_file = '{}'", path.display())).unwrap();
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(identity.answer(b"").unwrap().token.as_deref(), Some("new"));
    }

    #[test]
    fn contradictions_and_malformed_secrets_are_refused_by_name() {
        for (toml, expected) in [
            ("user = 'a'", "`user` needs `password`"),
            ("password = 'a'", "`password` needs `user`"),
            ("token = 'a'\nuser = 'b'\npassword = 'c'", "`user` and `token` are set together"),
            ("token = 'a'\ntoken_file = 'b'", "`token` and `token_file` are both set"),
            ("nkey = 'SUsecret'", "`nkey`: not the seed"),
            ("credentials_file = '/nowhere.creds'", "/nowhere.creds"),
            ("password_file = '/nowhere'\nuser = 'a'", "/nowhere"),
        ] {
            let error = identity(toml).unwrap_err();
            assert!(error.contains(expected), "{toml}: {error}");
            assert!(!error.contains("SUsecret"));
        }
        let account = KeyPair::new_account().seed().unwrap();
        assert!(identity(&format!("nkey = '{account}'")).unwrap_err().contains("user nkey"));
    }
}
