//! How the sink authenticates. Secrets in files are read at every connect, so that a rotated one takes effect without a restart.

use crate::setting::Secret;
use crate::sink::SetupError;
use crate::sink::nats::Config;
use async_nats::Auth;
use nkeys::{KeyPair, KeyPairType};
use std::path::{Path, PathBuf};

/// Refuses settings that name more than one way to authenticate or half of one, unreadable files and malformed keys.
pub(super) fn check(config: &Config) -> Result<(), SetupError> {
    let given = |value: &Option<Secret>, file: &Option<PathBuf>| value.is_some() || file.is_some();
    match (config.user.is_some(), given(&config.password, &config.password_file)) {
        (true, false) => return Err(SetupError("`user` needs `password` or `password_file`".to_owned())),
        (false, true) => {
            return Err(SetupError("`password` needs `user`; for a token alone use `token`".to_owned()));
        }
        _ => {}
    }
    let ways = [
        ("`user`", config.user.is_some()),
        ("`token`", given(&config.token, &config.token_file)),
        ("`nkey`", given(&config.nkey, &config.nkey_file)),
        ("`credentials_file`", config.credentials_file.is_some()),
    ];
    let named: Vec<_> = ways.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if named.len() > 1 {
        return Err(SetupError(format!("{} are set together; keep one way to authenticate", named.join(" and "))));
    }
    answer(config, b"").map(drop)
}

/// The answer to a server that challenges with `nonce`.
pub(super) fn answer(config: &Config, nonce: &[u8]) -> Result<Auth, SetupError> {
    let secret = |name, value: &Option<Secret>, file: &Option<PathBuf>| {
        let secret = Secret::resolve(name, value.as_ref(), file.as_deref())?;
        Ok::<_, SetupError>(secret.map(|secret| secret.reveal().to_owned()))
    };
    let mut auth = Auth::new();
    auth.username = config.user.clone();
    auth.password = secret("password", &config.password, &config.password_file)?;
    auth.token = secret("token", &config.token, &config.token_file)?;
    if let Some(seed) = secret("nkey", &config.nkey, &config.nkey_file)? {
        let key = user_key("nkey", &seed)?;
        auth.signature = Some(sign(&key, nonce)?);
        auth.nkey = Some(key.public_key());
    }
    if let Some(path) = &config.credentials_file {
        let (jwt, seed) = read_credentials(path)?;
        auth.signature = Some(sign(&user_key("credentials_file", &seed)?, nonce)?);
        auth.jwt = Some(jwt);
    }
    Ok(auth)
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
fn read_credentials(path: &Path) -> Result<(String, String), SetupError> {
    let problem = |text: String| SetupError(format!("`credentials_file`: {text}"));
    let text =
        std::fs::read_to_string(path).map_err(|error| problem(format!("cannot read {}: {error}", path.display())))?;
    let line_after = |title| {
        let mut lines = text.lines().map(str::trim);
        lines.find(|line| line.starts_with("-----BEGIN") && line.contains(title))?;
        lines.next().filter(|line| !line.is_empty() && !line.starts_with('-')).map(str::to_owned)
    };
    line_after("JWT").zip(line_after("SEED")).ok_or_else(|| {
        problem(format!("{} lacks a user JWT or an nkey seed between its BEGIN and END lines", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> Config {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(toml)).extract().unwrap()
    }

    fn auth(toml: &str, nonce: &[u8]) -> Auth {
        check(&config(toml)).unwrap();
        answer(&config(toml), nonce).unwrap()
    }

    #[test]
    fn each_way_to_authenticate_answers_a_challenge() {
        assert_eq!(auth("", b"").username, None);
        let password = auth("user = 'a'\npassword = 'b'", b"n");
        assert_eq!((password.username.as_deref(), password.password.as_deref()), (Some("a"), Some("b")));
        assert_eq!(auth("token = 't'", b"n").token.as_deref(), Some("t"));

        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let signed = auth(&format!("nkey = '{seed}'"), b"nonce");
        assert_eq!(signed.nkey, Some(key.public_key()));
        key.verify(b"nonce", &signed.signature.unwrap()).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user.creds");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\r\neyJ.x.y\r\n------END NATS USER JWT------\r\n\r\n*** IMPORTANT ***\r\n-----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
        );
        std::fs::write(&path, text).unwrap();
        let signed = auth(&format!("credentials_file = '{}'", path.display()), b"nonce");
        assert_eq!(signed.jwt.as_deref(), Some("eyJ.x.y"));
        key.verify(b"nonce", &signed.signature.unwrap()).unwrap();
    }

    #[test]
    fn a_rotated_file_takes_effect_at_the_next_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "old\n").unwrap();
        let config = config(&format!("token_file = '{}'", path.display()));
        assert_eq!(answer(&config, b"").unwrap().token.as_deref(), Some("old"));
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(answer(&config, b"").unwrap().token.as_deref(), Some("new"));
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
            let error = check(&config(toml)).unwrap_err().to_string();
            assert!(error.contains(expected), "{toml}: {error}");
            assert!(!error.contains("SUsecret"));
        }
        let account = KeyPair::new_account().seed().unwrap();
        let error = check(&config(&format!("nkey = '{account}'"))).unwrap_err().to_string();
        assert!(error.contains("user nkey"), "{error}");
    }
}
