//! Configurations that cannot be used.

use super::{SUCCESSFUL, file, reload, taken_up};
use crate::support::proxy::Proxy;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually, free_port, nats};
use cdrelay::control::Reload;
use std::fs::write;

/// Settings that are wrong, after those of a sound configuration, and the key that each problem has to name.
const WRONG: [(&str, &str); 34] = [
    // Misspelt.
    ("[spool]\npaht = 'x'", "spool.paht"),
    ("[ingres]\nmax_body = '1MiB'", "ingres"),
    ("[sinks.x]\ntype = 'kafak'", "sinks.x.type"),
    ("[sinks.x]\ntype = 'kafka'\nbroker = 'a:1'", "sinks.x.broker"),
    ("[sinks.x]\ntype = 'stdout'\nmax_inflight = 1", "sinks.x.max_inflight"),
    ("[log]\nlevel = 'warning'", "log.level"),
    ("[sinks.x]\ntype = 'nats'\nmode = 'jetsream'", "sinks.x.mode"),
    ("[shutdown]\ngrace = '5s'", "shutdown.grace"),
    // Of the wrong kind.
    ("[shutdown]\ngrace_period = 5", "shutdown.grace_period"),
    ("[dead_letters]\nmax_size = 'big'", "dead_letters.max_size"),
    ("[sinks.x]\ntype = 'kafka'\nbrokers = 'a:1'\nlinger = 'soon'", "sinks.x.linger"),
    ("[sinks.x]\ntype = 'stdout'\nmax_in_flight = 0", "sinks.x.max_in_flight"),
    ("[sinks.'A b']\ntype = 'stdout'", "sinks.A b"),
    ("[ingress.routes.east]\npath = 'east'", "ingress.routes.east.path"),
    // A file that is missing.
    ("[[ingress.auth]]\ntype = 'bearer'\nsecret_files = '/nowhere/secret'", "ingress.auth.0.secret_files.0"),
    ("[ingress.tls]\ncert_file = '/nowhere/crt'\nkey_file = '/nowhere/key'", "ingress.tls.cert_file"),
    ("[sinks.x]\ntype = 'nats'\nuser = 'u'\npassword_file = '/nowhere/password'", "sinks.x"),
    ("[sinks.x]\ntype = 'kafka'\nbrokers = 'a:1'\ntls.ca_file = '/nowhere/ca'", "sinks.x"),
    ("[sinks.x]\ntype = 'nats'\ncredentials_file = '/nowhere/creds'", "sinks.x"),
    (
        "[sinks.x]\ntype = 'kafka'\nbrokers = 'a:1'\nsasl.mechanism = 'PLAIN'\nsasl.username = 'u'\nsasl.password_file = '/nowhere'",
        "sinks.x",
    ),
    // Templates.
    ("[sinks.x]\ntype = 'stdout'\nkey = '{team'", "sinks.x.key"),
    ("[sinks.x]\ntype = 'stdout'\ntopic = '{team}}'", "sinks.x.topic"),
    ("[sinks.x]\ntype = 'nats'\nsubject = 'a..b'", "sinks.x.subject"),
    ("[sinks.x]\ntype = 'stdout'\nsource = '{'", "sinks.x.source"),
    ("[sinks.x]\ntype = 'kafka'\nbrokers = 'a:1'\npartition_by = '{}'", "sinks.x.partition_by"),
    // CEL.
    ("[sinks.x]\ntype = 'stdout'\nwhen = 'event.type =='", "sinks.x.when"),
    ("[sinks.x]\ntype = 'stdout'\nwhen = 'evnt.type == \"cdr\"'", "sinks.x.when"),
    ("[sinks.x]\ntype = 'stdout'\nwhen = '('", "sinks.x.when"),
    ("[sinks.x]\ntype = 'stdout'\nwhen_undecided = 'maybe'", "sinks.x.when_undecided"),
    // A restart.
    ("[spool]\npath = 'elsewhere'", "spool.path"),
    ("[log]\nformat = 'text'", "log.format"),
    ("[ingress.rejected]\nmax_size = '1MiB'", "ingress.rejected.max_size"),
    ("[spool]\nretain.age = '1h'", "spool.retain.age"),
    ("[spool]\ndedup_window = '1h'", "spool.dedup_window"),
];

#[tokio::test]
async fn a_wrong_configuration_changes_nothing_and_every_error_names_file_and_key() {
    let stream = nats::unique_name("refused");
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let proxy = Proxy::start(nats::shared().replace("nats://", "")).await;
    let running = format!(
        "{ANY_PORTS}{STDOUT}[sinks.nats]\ntype = 'nats'\nservers = 'nats://{}'\nsubject = '{stream}.{{n}}'\n",
        proxy.address()
    );
    // Refused only because of what is wrong: without that, each is taken up.
    let bridge = Bridge::start(&format!("{running}[reload]\nwatch = false\n")).await;
    let running = format!("{running}[reload]\nwatch = false\n");
    let mut wrong: Vec<(String, String)> = WRONG
        .iter()
        .filter(|(_, key)| *key != "log.format")
        .map(|(text, key)| (format!("{running}{text}"), format!("`{key}`")))
        .collect();
    let dead = free_port();
    for sink in [
        format!("type = 'kafka'\nbrokers = '127.0.0.1:{dead}'\ntopic = 't'"),
        format!("type = 'nats'\nservers = 'nats://127.0.0.1:{dead}'"),
    ] {
        wrong.push((format!("{running}[sinks.x]\n{sink}"), "`sinks.x`".into()));
    }
    // The destination of a sink that runs.
    wrong.push((running.replace(&proxy.address().to_string(), &format!("127.0.0.1:{dead}")), "`sinks.nats`".into()));
    // Half a file, at any length that is no sound configuration by chance.
    let whole = format!("{running}[sinks.x]\ntype = 'stdout'\nwhen = 'event.type == \"cdr\"'\nkey = '{{team}}'\n");
    let mut random = fastrand::Rng::with_seed(7);
    while wrong.len() < 50 {
        let half = &whole[..random.usize(1..whole.len())];
        if toml_is_broken(half) {
            wrong.push((half.to_owned(), "TOML parse error".into()));
        }
    }
    let name = file(&bridge).display().to_string();
    for (number, (text, key)) in wrong.iter().enumerate() {
        write(file(&bridge), text).unwrap();
        let reloaded = reload(&bridge, &Reload::default()).await;
        assert!(reloaded.changes.is_empty() && !reloaded.problems.is_empty(), "{text}: {reloaded:?}");
        for problem in &reloaded.problems {
            assert!(problem.starts_with(&format!("{name}: ")), "{text}: {problem}");
        }
        assert!(reloaded.problems.iter().any(|problem| problem.contains(key)), "{text}: {key}: {reloaded:?}");
        assert_eq!(bridge.metric(SUCCESSFUL).await, Some(0.0), "{text}");
        let event = format!("{{\"n\":{number}}}");
        assert_eq!(bridge.post(event, "application/json").await.status, 200, "{text}");
    }
    let all = wrong.len() as u64;
    eventually(PATIENCE, "the old one runs on", async || nats::stream_length(&nats::shared(), &stream).await == all)
        .await;
    assert_eq!(
        (proxy.connections(), bridge.stdout_lines().iter().filter(|line| !line.is_empty()).count()),
        (1, wrong.len())
    );

    write(file(&bridge), &running).unwrap();
    assert_eq!(reload(&bridge, &Reload::default()).await, Default::default());
    assert_eq!(bridge.metric(SUCCESSFUL).await, Some(1.0));
    taken_up(&bridge).await;
    nats::delete_stream(&nats::shared(), &stream).await;
}

fn toml_is_broken(text: &str) -> bool {
    cdrelay::config::Config::from_toml(text).is_err_and(|error| error.to_string().contains("TOML parse error"))
}

#[tokio::test]
async fn the_watcher_finds_a_wrong_file_and_the_right_one_again() {
    let running = format!("{ANY_PORTS}{STDOUT}");
    let bridge = Bridge::start(&running).await;
    for text in ["[sinks.", "[spool]\npaht = 1\n[sinks.out]\ntype = 'stdout'\n"] {
        write(file(&bridge), text).unwrap();
        eventually(PATIENCE, "refused", async || bridge.metric(SUCCESSFUL).await == Some(0.0)).await;
        write(file(&bridge), &running).unwrap();
        eventually(PATIENCE, "right again", async || bridge.metric(SUCCESSFUL).await == Some(1.0)).await;
    }
    let log = bridge.stderr();
    assert!(log.contains("`spool.paht`: is unknown") && log.contains("cdrelay.toml"), "{log}");
}
