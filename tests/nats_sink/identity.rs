//! Who the sink is to the server: passwords, tokens, keys, credentials, certificates.

use super::{deliver, fails_with, message, sink};
use crate::support::nats::Server;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cdrelay::sink::Sink;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer};
use serde_json::{Value, json};
use std::path::Path;

const CREATE: &str = "stream = { name = 'CDR', create = true }\n";
const SUBJECT: &str = "telecmi.cdr.a.b";

#[tokio::test]
async fn a_wrong_password_is_told_without_the_password_and_works_once_granted() {
    let granted = |password: &str| format!("authorization {{ user: bridge, password: {password} }}");
    let server = Server::start(&granted("other")).await;
    let sink = sink(&server, &format!("user = 'bridge'\npassword = 'hunter2'\n{CREATE}"));
    let event = message(1, SUBJECT);
    let cause = fails_with(&sink, &event, "authorization violation").await;
    assert!(!cause.contains("hunter2"), "{cause}");
    assert_eq!(sink.probe().await.unwrap_err().to_string(), cause);
    server.reload(&granted("hunter2"));
    deliver(&sink, &event).await;
}

#[tokio::test]
async fn a_rotated_token_file_is_used_at_the_next_connect() {
    let server = Server::start("authorization { token: second }").await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let sink = sink(&server, &format!("token_file = '{}'\n{CREATE}", path.display()));
    let event = message(1, SUBJECT);
    fails_with(&sink, &event, "authorization violation").await;
    std::fs::write(&path, "second\n").unwrap();
    deliver(&sink, &event).await;
}

#[tokio::test]
async fn an_nkey_is_accepted() {
    let key = KeyPair::new_user();
    let server = Server::start(&format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key())).await;
    let sink = sink(&server, &format!("nkey = '{}'\n{CREATE}", key.seed().unwrap()));
    deliver(&sink, &message(1, SUBJECT)).await;
}

#[tokio::test]
async fn a_credentials_file_is_accepted_and_its_payload_limit_can_be_set() {
    let (operator, account, system, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1
    });
    let operator_jwt = jwt(&operator, &operator, json!({ "type": "operator", "version": 2 }));
    let account_jwt = jwt(&operator, &account, json!({ "type": "account", "version": 2, "limits": unlimited }));
    let mut system_limits = unlimited.clone();
    for key in ["mem_storage", "disk_storage", "streams", "consumer"] {
        system_limits.as_object_mut().unwrap().remove(key);
    }
    let system_jwt = jwt(&operator, &system, json!({ "type": "account", "version": 2, "limits": system_limits }));
    let user_jwt =
        jwt(&account, &user, json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": 1000 }));
    let server = Server::start(&format!(
        "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt}, {}: {system_jwt} }}",
        system.public_key(),
        account.public_key(),
        system.public_key(),
    ))
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user.creds");
    let seed = user.seed().unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(&path, text).unwrap();
    let sink = sink(&server, &format!("credentials_file = '{}'\nmax_payload = '1000B'\n{CREATE}", path.display()));
    deliver(&sink, &message(1, SUBJECT)).await;
    let large = message(2, SUBJECT).with_payload(vec![b' '; 1000]);
    super::rejected(sink.publish(&large).await, "exceeds max_payload of 1000");
    sink.publish(&message(3, SUBJECT)).await.unwrap();
}

/// A JWT as `nsc` makes it: signed by `issuer`, about `subject`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let (iss, sub) = (issuer.public_key(), subject.public_key());
    let claims =
        encode(json!({ "jti": sub, "iat": 1_700_000_000, "iss": iss, "sub": sub, "name": "test", "nats": nats }));
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn tls_trusts_the_private_authority_and_shows_the_clients_certificate() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let server = Server::start(&format!(
        "tls {{ cert_file: '{}', key_file: '{}', ca_file: '{}', verify: true }}",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    ))
    .await;
    let event = message(1, SUBJECT);
    let full = format!(
        "tls = {{ ca_file = '{}', cert_file = '{}', key_file = '{}' }}\n{CREATE}",
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    deliver(&sink(&server, &full), &event).await;
    let stranger = format!("tls = {{ ca_file = '{}' }}\n", file("other.pem"));
    fails_with(&sink(&server, &stranger), &event, "certificate").await;
}

/// An authority with a server and a client, and an authority nobody asked for.
fn certificates(dir: &Path) {
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.join(name), params.self_signed(&key).unwrap().pem()).unwrap();
        Issuer::new(params, key)
    };
    authority("other.pem");
    let authority = authority("ca.pem");
    for (name, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        std::fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, &authority).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}
