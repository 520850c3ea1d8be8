//! Certificates for servers on loopback, made by an authority that lives as long as the test.

use std::fs::write;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Files in PEM, in the directory that [`issue`] was given.
pub struct Files {
    /// The certificate of the authority: what a client has to trust.
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The key and the certificate in one file, as Kafka wants them.
    pub key_and_certificate: PathBuf,
}

/// Makes an authority, and a certificate by it for `127.0.0.1` and `localhost`.
pub fn issue(directory: &Path) -> Files {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate whose issuer has its own name for self-signed, and rcgen gives all the same name.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();

    let file = |name: &str, content: &str| {
        let path = directory.join(name);
        write(&path, content).unwrap();
        path
    };
    Files {
        authority: file("authority.pem", &authority.pem()),
        certificate: file("certificate.pem", &certificate.pem()),
        key: file("key.pem", &key.serialize_pem()),
        key_and_certificate: file("key-and-certificate.pem", &(key.serialize_pem() + &certificate.pem())),
    }
}
