//! The options of a connection and its servers, as the settings describe them.

use super::config::TlsConfig;
use super::{Config, auth};
use crate::sink::SetupError;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{AuthError, ConnectOptions, ServerAddr, Subject};
use std::path::Path;
use std::time::Duration;

/// The library replaces a connection that leaves three of these unanswered: after 20 s at the latest.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The options of a connection as `config` describes it. TLS files are tried now, so that a mistake shows at load, and read again by
/// the library at each connect.
pub(crate) fn connect_options(config: &Config) -> Result<ConnectOptions, SetupError> {
    auth::check(config)?;
    let prefix = config.inbox_prefix.as_deref().unwrap_or("_INBOX");
    if !Subject::from(prefix).is_valid() || prefix.contains(['*', '>']) {
        return Err(SetupError(format!("`inbox_prefix`: `{prefix}` is not a literal subject")));
    }
    let own = config.clone();
    let options = ConnectOptions::with_auth_callback(move |nonce| {
        std::future::ready(auth::answer(&own, &nonce).map_err(AuthError::new))
    })
    .name(config.client_name.as_deref().unwrap_or("cdrelay"))
    .custom_inbox_prefix(prefix)
    .retry_on_initial_connect()
    .max_reconnects(None)
    .ping_interval(PING_INTERVAL);
    config.tls.iter().try_fold(options, add_tls)
}

/// Host and port of each server. Credentials in a URL are refused: the library would ignore them.
pub(crate) fn parse_servers(servers: &[String]) -> Result<Vec<ServerAddr>, SetupError> {
    let refused = |url: &str, why: &str| SetupError(format!("`servers`: `{url}` {why}"));
    let parse = |url: &str| {
        if url.contains('@') {
            return Err(SetupError(
                "`servers`: a URL must not hold credentials; use `user` and `password`, or `token`".to_owned(),
            ));
        }
        let server: ServerAddr = url.parse().map_err(|_| refused(url, "is not an address like nats://host:4222"))?;
        match server.scheme() {
            _ if server.host().is_empty() => Err(refused(url, "names no host")),
            "nats" | "tls" => Ok(server),
            _ => Err(refused(url, "is neither nats:// nor tls://")),
        }
    };
    match servers {
        [] => Err(SetupError("`servers`: is empty; name at least one, like nats://127.0.0.1:4222".to_owned())),
        servers => servers.iter().flat_map(|text| text.split(',')).map(|url| parse(url.trim())).collect(),
    }
}

fn add_tls(options: ConnectOptions, tls: &TlsConfig) -> Result<ConnectOptions, SetupError> {
    let unusable = |key: &str, path: &Path, error: &dyn std::fmt::Display| {
        SetupError(format!("`tls.{key}`: cannot use {}: {error}", path.display()))
    };
    let certificates = |key: &str, path: &Path| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match all {
            Ok(found) if found.is_empty() => Err(unusable(key, path, &"it holds no certificate")),
            Ok(_) => Ok(()),
            Err(error) => Err(unusable(key, path, &error)),
        }
    };
    let mut options = options.require_tls(tls.required);
    if tls.handshake_first {
        options = options.tls_first();
    }
    if let Some(path) = &tls.ca_file {
        certificates("ca_file", path)?;
        options = options.add_root_certificates(path.clone());
    }
    match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => {
            certificates("cert_file", cert)?;
            PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("key_file", key, &error))?;
            Ok(options.add_client_certificate(cert.clone(), key.clone()))
        }
        (None, None) => Ok(options),
        _ => Err(SetupError("`tls.cert_file` and `tls.key_file` belong together; set both or neither".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_checked_at_load() {
        let parse = |url: &str| parse_servers(&[url.to_owned()]).map_err(|error| error.to_string());
        assert_eq!(parse("nats.example").unwrap().first().map(ServerAddr::port), Some(4222));
        assert_eq!(parse("nats://a:1, tls://b:2").unwrap().len(), 2);
        assert!(parse("ws://a:1").unwrap_err().contains("neither nats:// nor tls://"));
        assert!(parse("nats://").is_err());
        assert!(parse("a b").is_err());
        assert!(parse_servers(&[]).is_err());
        let error = parse("nats://user:hunter2@a").unwrap_err();
        assert!(error.contains("credentials") && !error.contains("hunter2"));
    }

    #[test]
    fn tls_files_are_checked_at_load() {
        let tls = |toml: &str| {
            use figment::providers::{Format, Toml};
            let tls: TlsConfig = figment::Figment::from(Toml::string(toml)).extract().unwrap();
            add_tls(ConnectOptions::new(), &tls).map(drop).map_err(|error| error.to_string())
        };
        assert!(tls("").is_ok());
        assert!(tls("ca_file = '/nowhere.pem'").unwrap_err().contains("`tls.ca_file`: cannot use /nowhere.pem"));
        assert!(tls("cert_file = '/nowhere.pem'").unwrap_err().contains("belong together"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.pem");
        std::fs::write(&path, "").unwrap();
        assert!(tls(&format!("ca_file = '{}'", path.display())).unwrap_err().contains("no certificate"));
    }
}
