//! The configuration is changed while the bridge runs: all of it or nothing, without a failed request, a lost event or a connection more.

mod load;
mod refused;

use crate::command_line::cdrelay;
use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually, nats, until};
use cdrelay::config::Source;
use cdrelay::control::{self, Reload, Reloaded};
use std::fs::{self, create_dir, remove_dir_all, remove_file, rename, write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

const SUCCESSFUL: &str = "cdrelay_config_last_reload_successful";

/// The file that the bridge was started with.
pub fn file(bridge: &Bridge) -> PathBuf {
    bridge.directory().join("cdrelay.toml")
}

/// The hash of what the file says, together with the options that the bridge was started with.
pub fn hash(bridge: &Bridge) -> String {
    let source = Source { files: vec![file(bridge)], settings: vec!["log.format=json".into()], ..Source::default() };
    source.load().unwrap().values.hash()
}

/// Waits until the bridge runs what the file says.
pub async fn taken_up(bridge: &Bridge) {
    let info = format!("cdrelay_config_info{{hash=\"{}\"}}", hash(bridge));
    eventually(PATIENCE, "the configuration is taken up", async || bridge.metric(&info).await == Some(1.0)).await;
}

/// Asks the bridge to reload as the command does.
pub async fn reload(bridge: &Bridge, request: &Reload) -> Reloaded {
    control::reload(&bridge.directory().join("spool"), request).await.unwrap().unwrap()
}

/// Replaces the configuration as the kubelet does: the file is a symbolic link over `..data`, which is replaced by a rename.
pub fn swap(bridge: &Bridge, config: &str, version: usize) {
    let directory = bridge.directory();
    let (new, data, link) = (directory.join(format!("..{version}")), directory.join("..data"), directory.join("link"));
    create_dir(&new).unwrap();
    write(new.join("cdrelay.toml"), config).unwrap();
    let old = fs::read_link(&data).ok();
    symlink(&new, &link).unwrap();
    rename(&link, &data).unwrap();
    if old.is_none() {
        symlink("..data/cdrelay.toml", &link).unwrap();
        rename(&link, file(bridge)).unwrap();
    }
    old.inspect(|old| remove_dir_all(old).unwrap());
}

#[tokio::test]
async fn routes_limits_and_levels_change_and_connections_stay_open() {
    let base = format!("{ANY_PORTS}max_body = '1KiB'\n");
    let bridge = Bridge::start(&format!("{base}{STDOUT}")).await;
    taken_up(&bridge).await;
    let mut client = Raw::connect(&bridge).await;
    assert_eq!(client.exchange("{\"n\":1}").await, Ok(200));

    let auth = "auth = [{ type = 'bearer', secrets = ['0123456789'] }]\n[ingress.routes.east]\npath = '/east'\n[log]\nlevel = 'debug'\n";
    let path = format!("{base}path = '/webhook/cdr'\n{auth}{STDOUT}");
    write(file(&bridge), &path).unwrap();
    bridge.hang_up();
    taken_up(&bridge).await;
    assert_eq!(client.exchange("{\"n\":2}").await, Ok(401));
    let mut control = UnixStream::connect(bridge.directory().join("spool/control")).await.unwrap();
    control.write_all(b"nonsense\n").await.unwrap();
    eventually(PATIENCE, "DEBUG is logged", async || bridge.stderr().contains("a control connection failed")).await;

    write(file(&bridge), format!("{ANY_PORTS}max_body = '32B'\n{STDOUT}")).unwrap();
    taken_up(&bridge).await;
    assert_eq!(client.exchange("{\"n\":3}").await, Ok(200));
    assert_eq!(client.exchange(&format!("{{\"n\":\"{}\"}}", "x".repeat(100))).await, Ok(413));
    assert_eq!(bridge.metric(SUCCESSFUL).await, Some(1.0));
    let since = bridge.metric("cdrelay_config_last_reload_success_timestamp_seconds").await.unwrap();
    assert!(since > 1.7e9, "{since}");
}

#[tokio::test]
async fn the_command_tells_what_changes_and_changes_nothing_if_it_is_not_to() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let config = file(&bridge);
    let spool = bridge.directory().join("spool");
    let command = |more: &[&str]| {
        let settings = ["reload", "--config", config.to_str().unwrap(), "--spool", spool.to_str().unwrap()];
        cdrelay(&[&settings[..], more].concat())
    };
    assert_eq!(command(&[]).success(), "nothing changed\n");
    // Only asked for: the watcher would be as quick.
    let watchless = format!("{ANY_PORTS}[reload]\nwatch = false\n{STDOUT}");
    write(&config, &watchless).unwrap();
    taken_up(&bridge).await;
    let changed = format!("{watchless}key = 'k'\n[sinks.more]\ntype = 'stdout'\n");
    write(&config, &changed).unwrap();
    let expected = "sink `more`: added\nsink `out`: keeps its connection (key)\n";
    for _ in 0..2 {
        assert_eq!(command(&["--dry-run"]).success(), expected);
    }
    assert_eq!(command(&[]).success(), expected);
    assert_eq!(command(&[]).success(), "nothing changed\n");
    assert_eq!(bridge.post("{\"n\":1}", "application/json").await.status, 200);
    let lines = until(PATIENCE, "both sinks", async || {
        Some(bridge.stdout_lines()).filter(|lines| lines.iter().filter(|line| line.contains("\"n\":1")).count() == 2)
    });
    assert!(lines.await.iter().any(|line| line.contains("\"key\":\"k\"")));

    write(&config, format!("{changed}[spool]\nmax_size = '2GiB'\n[ingress.rejected]\nmax_size = '1MiB'")).unwrap();
    let refused = command(&["--dry-run"]);
    assert_eq!(refused.code, Some(78));
    let name = format!("{}: ", config.display());
    for key in ["spool.max_size", "ingress.rejected.max_size"] {
        assert!(refused.stderr.contains(&format!("{name}`{key}`: needs a restart")), "{}", refused.stderr);
    }
    assert_eq!(bridge.metric(SUCCESSFUL).await, Some(1.0), "a dry run is no reload");
    assert_eq!(command(&[]).code, Some(78));
    assert_eq!(bridge.metric(SUCCESSFUL).await, Some(0.0));

    drop(bridge);
    let nobody = tempfile::tempdir().unwrap();
    let nobody = cdrelay(&["reload", "--spool", nobody.path().to_str().unwrap()]);
    assert!(nobody.code == Some(1) && nobody.stderr.contains("no bridge runs"), "{nobody:?}");
}

#[tokio::test]
async fn a_sink_with_undelivered_events_goes_only_if_it_is_named() {
    let stream = nats::unique_name("removed");
    let mut server = nats::Server::start("").await;
    nats::create_stream(&server.url(), &stream, &[&format!("{stream}.>")]).await;
    let far = |name: &str| {
        format!("[sinks.{name}]\ntype = 'nats'\nservers = '{}'\nsubject = '{stream}.{{n}}'\n", server.url())
    };
    let start = format!("{ANY_PORTS}{STDOUT}{}{}", far("a"), far("b"));
    let bridge = Bridge::start(&start).await;
    server.kill();
    for n in 0..3 {
        assert_eq!(bridge.post(format!("{{\"n\":{n}}}"), "application/json").await.status, 200);
    }
    let config = file(&bridge);
    write(&config, format!("{ANY_PORTS}{STDOUT}")).unwrap();
    let Reloaded { changes, problems } = reload(&bridge, &Reload::default()).await;
    assert!(changes.is_empty() && problems.len() == 2, "{problems:?}");
    assert!(problems[0].starts_with("`sinks.a`: is missing, and 3 events are undelivered"), "{problems:?}");
    let discard = |name: &str| Reload { discard: vec![name.into()], ..Reload::default() };
    let one = reload(&bridge, &discard("a")).await;
    assert!(one.problems.len() == 1 && one.problems[0].starts_with("`sinks.b`"), "{one:?}");
    let lag = |name: &str| format!("cdrelay_sink_lag_records{{sink=\"{name}\"}}");
    assert_eq!(bridge.metric(&lag("a")).await, Some(3.0), "a part of a refused change was made");

    write(&config, format!("{ANY_PORTS}{STDOUT}[reload]\ndiscard = ['b']\n")).unwrap();
    let gone = reload(&bridge, &discard("a")).await;
    assert_eq!(gone.changes, ["sink `a`: removed", "sink `b`: removed", "`reload.discard`"], "{gone:?}");
    assert_eq!((bridge.metric(&lag("a")).await, bridge.metric(&lag("b")).await), (None, None));
    assert!(!bridge.admin("/readyz").await.text().contains("\"a\""));
    eventually(PATIENCE, "the rest is delivered", async || bridge.stdout_lines().len() >= 3).await;
    remove_file(&config).unwrap();
    assert!(reload(&bridge, &Reload::default()).await.problems[0].contains("cannot be read"));
}
