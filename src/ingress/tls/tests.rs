use super::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use std::fs::write;
use std::path::Path;
use tempfile::TempDir;

/// A directory with a pair.
struct Place {
    directory: TempDir,
    config: Config,
}

/// A certificate and its key in PEM, valid until the year.
fn pair(until: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = date_time_ymd(until, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn config(directory: &Path) -> Config {
    Config {
        cert_file: directory.join("tls.crt"),
        key_file: directory.join("tls.key"),
        client_ca_file: None,
        client_auth: ClientAuth::Required,
        min_version: Version::Tls12,
    }
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let place = Self { config: config(directory.path()), directory };
        place.put(&pair(2999));
        place
    }

    fn put(&self, (certificate, key): &(String, String)) {
        write(&self.config.cert_file, certificate).unwrap();
        write(&self.config.key_file, key).unwrap();
    }

    fn problem(&self) -> String {
        check(&self.config).unwrap_err().to_string()
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_setting_file_and_remedy() {
    let mut place = Place::new();
    check(&place.config).unwrap();
    let sound = pair(2999);
    let certificate_file = place.config.cert_file.display().to_string();
    let key_file = place.config.key_file.display().to_string();
    let (begin, end) = ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAo=\n", "-----END ENCRYPTED PRIVATE KEY-----\n");
    let cases: [(&str, &str, &str, &str); 9] = [
        ("", &sound.1, "`ingress.tls.cert_file`", "holds no certificate; expected PEM"),
        (&sound.1, &sound.1, "`ingress.tls.cert_file`", "holds no certificate; expected PEM"),
        (&sound.0[..200], &sound.1, "`ingress.tls.cert_file`", "is not sound PEM"),
        (
            "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n",
            &sound.1,
            "`ingress.tls.cert_file`",
            "does not begin with a certificate that can be read",
        ),
        (&sound.0, "", "`ingress.tls.key_file`", "holds no private key; expected PEM"),
        (&sound.0, &sound.0, "`ingress.tls.key_file`", "holds no private key; expected PEM"),
        (&sound.0, &sound.1[..100], "`ingress.tls.key_file`", "is not sound PEM"),
        (&sound.0, &format!("{begin}{end}"), "`ingress.tls.key_file`", "decrypt it with `openssl pkey"),
        (
            &sound.0,
            "-----BEGIN PRIVATE KEY-----\nMAo=\n-----END PRIVATE KEY-----\n",
            "`ingress.tls.key_file`",
            "of a kind that is not supported; use ECDSA P-256",
        ),
    ];
    for (certificate, key, setting, cause) in cases {
        place.put(&(certificate.to_owned(), key.to_owned()));
        let problem = place.problem();
        let file = if setting.contains("cert") { &certificate_file } else { &key_file };
        assert!(problem.starts_with(setting) && problem.contains(cause) && problem.contains(file), "{problem}");
    }
    place.put(&(sound.0.clone(), pair(2999).1));
    let problem = place.problem();
    assert!(problem.contains("does not belong to the first certificate in") && problem.contains(&certificate_file));

    place.put(&sound);
    place.config.key_file = place.directory.path().join("gone");
    assert!(place.problem().contains("gone cannot be read: No such file"), "{}", place.problem());
    place.config.key_file = place.directory.path().to_owned();
    assert!(place.problem().contains("directory"), "{}", place.problem());
    place.config.key_file = "/dev/zero".into();
    assert!(place.problem().contains("larger than 4 MiB"), "{}", place.problem());
}

#[test]
fn authorities_are_checked_one_by_one() {
    let mut place = Place::new();
    let file = place.directory.path().join("ca.crt");
    place.config.client_ca_file = Some(file.clone());
    write(&file, "").unwrap();
    assert!(place.problem().contains("`ingress.tls.client_ca_file`"), "{}", place.problem());
    write(&file, pair(2999).0 + "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n").unwrap();
    assert!(place.problem().contains("number 2, that cannot be used"), "{}", place.problem());
    write(&file, pair(2999).0 + &pair(2999).0).unwrap();
    check(&place.config).unwrap();
}

/// The parser of PEM skips a line that begins with anything else than `-----BEGIN`.
#[test]
fn no_certificate_is_left_out_silently() {
    let mut place = Place::new();
    let (own, key) = pair(2999);
    for before in ["\u{feff}", "\u{feff}\n", "subject=/CN=localhost\n"] {
        place.put(&(format!("{before}{own}"), format!("{before}{key}")));
        check(&place.config).unwrap();
    }
    // The certificate behind it would be taken for the server's own.
    for before in [" ", "x", "\u{feff}\u{feff}"] {
        place.put(&(format!("{before}{own}{own}"), key.clone()));
        assert!(place.problem().contains("whose first line is not"), "{before:?}: {}", place.problem());
    }
    place.put(&(own.clone(), key));
    let authorities = place.directory.path().join("ca.crt");
    write(&authorities, format!("\u{feff}{own}{}", pair(2999).0)).unwrap();
    place.config.client_ca_file = Some(authorities);
    check(&place.config).unwrap();
}

#[test]
fn one_file_may_hold_both() {
    let mut place = Place::new();
    let (certificate, key) = pair(2999);
    write(&place.config.cert_file, key + &certificate).unwrap();
    place.config.key_file = place.config.cert_file.clone();
    check(&place.config).unwrap();
}

#[test]
fn a_changed_pair_is_taken_if_it_is_valid_now() {
    let place = Place::new();
    let Files(files) = Files::open(&place.config).unwrap();
    let put = |pair: &(String, String)| {
        place.put(pair);
        (files.poll(Loaded::valid_now), files.poll(Loaded::valid_now)).1
    };
    assert_eq!(put(&pair(3000)), Change::Replaced);
    assert!(files.current().certificate.to_string().contains("3000-01-01"));
    let Change::Unusable(error) = put(&pair(2020)) else { panic!("an expired certificate was taken") };
    assert!(error.to_string().contains("has expired at 2020-01-01T00:00:00Z"), "{error}");
    assert!(files.current().certificate.to_string().contains("3000-01-01"));
    assert_eq!(put(&pair(2999)), Change::Replaced);
}
