//! New certificates and authorities while it runs.

use super::{Place, bridge, handshakes};
use crate::support::tls::{Authority, Client, Pair};
use crate::support::{Bridge, PATIENCE, eventually};
use futures_util::future::join;
use std::fs::{create_dir, read_to_string, remove_dir_all, rename, write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::rustls::version::{TLS12, TLS13};

async fn reloads(bridge: &Bridge, result: &str) -> f64 {
    bridge.metric(&format!("cdrelay_ingress_tls_reloads_total{{result=\"{result}\"}}")).await.unwrap()
}

/// Posts on one connection that stays and on new ones, until told to stop. Returns how many requests there were; panics if one fails.
async fn load(clients: &[Client], bridge: &Bridge, stop: &AtomicBool, served: &AtomicUsize) {
    let mut kept = Vec::new();
    for client in clients {
        kept.push(client.raw(bridge).await.unwrap());
    }
    while !stop.load(Ordering::Relaxed) {
        for (client, kept) in clients.iter().zip(&mut kept) {
            let body = || format!("{{\"n\":{}}}", fastrand::u64(..));
            assert_eq!(kept.exchange(&body()).await, Ok(200), "on a connection that was there");
            assert_eq!(client.post(bridge, &body()).await, Ok(200), "on a new connection");
            served.fetch_add(2, Ordering::Relaxed);
        }
    }
}

/// The certificate that a new connection gets.
async fn served_certificate(authority: &Authority, bridge: &Bridge) -> Vec<u8> {
    let stream = Client::trusting(authority).connect(bridge).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn new_certificates_under_load_fail_no_request() {
    let authority = Authority::new("servers");
    let place = Place(TempDir::new().unwrap());
    let path = |name: &str| place.0.path().join(name);
    // As the kubelet mounts a secret.
    let mount = |version: &str, pair: &Pair| {
        create_dir(path(version)).unwrap();
        write(path(version).join("tls.crt"), &pair.certificate).unwrap();
        write(path(version).join("tls.key"), &pair.key).unwrap();
        symlink(version, path("..data_tmp")).unwrap();
        rename(path("..data_tmp"), path("..data")).unwrap();
    };
    mount("..1", &authority.issue());
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), path(name)).unwrap();
    }
    let bridge = place.bridge("").await;
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients = [TLS12.version, TLS13.version, TLS13.version].map(|version| {
        let versions = if version == TLS12.version { [&TLS12] } else { [&TLS13] };
        Client::new(&authority, None, "", &versions)
    });
    let swaps = async {
        let mut current = served_certificate(&authority, &bridge).await;
        let mut swapped = async |how: &str, swap: &dyn Fn()| {
            let before = served.load(Ordering::Relaxed);
            swap();
            eventually(PATIENCE, how, async || served_certificate(&authority, &bridge).await != current).await;
            current = served_certificate(&authority, &bridge).await;
            let enough = async || served.load(Ordering::Relaxed) > before + 50;
            eventually(PATIENCE, "there is load", enough).await;
        };
        swapped("a secret is swapped", &|| {
            mount("..2", &authority.issue());
            remove_dir_all(path("..1")).unwrap();
        })
        .await;
        swapped("a secret is swapped again", &|| {
            mount("..3", &authority.issue());
            remove_dir_all(path("..2")).unwrap();
        })
        .await;
        swapped("files are written over", &|| place.put(&authority.issue())).await;
        swapped("files are replaced", &|| {
            let pair = authority.issue();
            place.file("new.key", &pair.key);
            rename(path("new.key"), path("tls.key")).unwrap();
            place.file("new.crt", &pair.certificate);
            rename(path("new.crt"), path("tls.crt")).unwrap();
        })
        .await;
        stop.store(true, Ordering::Relaxed);
    };
    timeout(4 * PATIENCE, join(load(&clients, &bridge, &stop, &served), swaps)).await.unwrap();
    println!("{} requests, each on its own connection or on one that saw four swaps", served.load(Ordering::Relaxed));
    assert_eq!((reloads(&bridge, "ok").await, reloads(&bridge, "failed").await), (4.0, 0.0));
    assert_eq!(handshakes(&bridge, "failed").await, 0.0);
    assert!(!bridge.stderr().contains("\"level\":\"ERROR\""), "{}", bridge.stderr());
}

#[tokio::test]
async fn a_bad_pair_keeps_the_old_one_and_is_told_once() {
    let (authority, place, bridge) = bridge("").await;
    let not_after = "cdrelay_ingress_tls_not_after_timestamp_seconds";
    // The beginning of the year 4096.
    assert_eq!(bridge.metric(not_after).await, Some(67_090_118_400.0));
    let before = served_certificate(&authority, &bridge).await;
    place.file("tls.key", &authority.issue().key);
    eventually(PATIENCE, "it is counted", async || reloads(&bridge, "failed").await == 1.0).await;
    place.file("tls.crt", &read_to_string(place.0.path().join("tls.crt")).unwrap()[..300]);
    eventually(PATIENCE, "that is counted too", async || reloads(&bridge, "failed").await == 2.0).await;
    let said = |what: &str| bridge.stderr().lines().filter(|line| line.contains(what)).count();
    assert_eq!(said("does not belong to the first certificate in"), 1, "{}", bridge.stderr());
    assert_eq!(said("is not sound PEM"), 1, "{}", bridge.stderr());
    assert_eq!(said("\"level\":\"ERROR\""), 2);
    assert_eq!(served_certificate(&authority, &bridge).await, before);
    assert_eq!(reloads(&bridge, "ok").await, 0.0);

    place.put(&authority.issue_until(3000));
    eventually(PATIENCE, "a good one is taken", async || reloads(&bridge, "ok").await == 1.0).await;
    assert_ne!(served_certificate(&authority, &bridge).await, before);
    assert_eq!(bridge.metric(not_after).await, Some(32_503_680_000.0));
    assert!(bridge.stderr().contains("valid until 3000-01-01T00:00:00Z"), "{}", bridge.stderr());
}

/// A session from before the change would get its client around the new authorities.
#[tokio::test]
async fn new_authorities_hold_for_sessions_too() {
    let (servers, old, new) = (Authority::new("servers"), Authority::new("old"), Authority::new("new"));
    let place = Place::new(&servers.issue());
    place.file("ca.crt", &old.pem());
    let bridge = place.bridge(&place.client_ca()).await;
    for versions in [[&TLS12], [&TLS13]] {
        place.file("ca.crt", &old.pem());
        let client = Client::new(&servers, Some(&old.issue()), "", &versions);
        eventually(PATIENCE, "it is let in", async || client.post(&bridge, "{}").await == Ok(200)).await;
        let mut again = client.raw(&bridge).await.unwrap();
        assert_eq!(again.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
        assert_eq!(again.exchange("{}").await, Ok(200));
        place.file("ca.crt", &new.pem());
        eventually(PATIENCE, "it is refused", async || client.post(&bridge, "{}").await.is_err()).await;
        assert_eq!(Client::new(&servers, Some(&new.issue()), "", &versions).post(&bridge, "{}").await, Ok(200));
    }
}

#[tokio::test]
async fn an_expired_certificate_is_used_with_a_warning() {
    let authority = Authority::new("servers");
    let place = Place::new(&authority.issue_until(2020));
    let bridge = place.bridge("").await;
    assert!(bridge.stderr().contains("has expired at 2020-01-01T00:00:00Z"), "{}", bridge.stderr());
    let error = Client::trusting(&authority).post(&bridge, "{}").await.unwrap_err();
    assert!(error.contains("certificate expired"), "{error}");
    place.put(&authority.issue());
    eventually(PATIENCE, "a good one is taken", async || reloads(&bridge, "ok").await == 1.0).await;
    assert_eq!(Client::trusting(&authority).post(&bridge, "{}").await, Ok(200));
}
