//! The JSON Schema of a configuration says what the bridge says.

use crate::command_line::cdrelay;
use crate::openapi::schemathesis::python;
use cdrelay::config::Config;
use cdrelay::sink::Registry;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config");

/// Mistakes, with the place that the schema has to name.
const WRONG: [(&str, &str); 17] = [
    ("[ingres]\nlisten = '127.0.0.1:0'", "/: "),
    ("[ingress]\nmax_bdoy = '1MiB'", "/ingress: "),
    ("[ingress]\nmax_connections = -1", "/ingress/max_connections: "),
    ("[ingress]\nmax_connections = 'many'", "/ingress/max_connections: "),
    ("[ingress]\nbody_timeout = 10", "/ingress/body_timeout: "),
    ("[ingress]\nack = 'never'", "/ingress/ack: "),
    ("[ingress]\nmethods = ['PATCH']", "/ingress/methods/0: "),
    ("[ingress.decode]\nmax_depth = true", "/ingress/decode/max_depth: "),
    ("[[ingress.auth]]\ntype = 'bearer'\nsecret = '0123456789abcdef'", "/ingress/auth/0: "),
    ("[ingress.tls]\ncert_file = 'a.pem'", "/ingress/tls: "),
    ("[spool.retain]\nsize = '1GiB'", "/spool/retain: "),
    ("[sinks.k]\ntype = 'kafka'\ntopic = 'cdr'", "/sinks/k: "),
    ("[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 'cdr'\ncompression = 'rar'", "/sinks/k/compression: "),
    ("[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 'cdr'\nretry = { max_agee = '1h' }", "/sinks/k/retry: "),
    ("[sinks.n]\ntype = 'nats'\nsubject = 'cdr'\nbrokers = 'a:1'", "/sinks/n: "),
    ("[sinks.r]\ntype = 'rabbit'", "/sinks/r/type: "),
    ("[[tests]]\nname = 'one'\nevent = '{}'", "/tests/0: "),
];

/// Unusual forms that are sound.
const RIGHT: &str = "
[ingress]
max_body = 500000
auth = [{ type = 'github', secrets = '0123456789abcdef0123' }, { type = 'cidr', networks = ['::1', '10.0.0.0/8'] }]
[sinks.k]
type = 'kafka'
brokers = ['a:1', 'b:1']
subject = 'cdr.{team}'
sasl = { mechanism = 'PLAIN', username = 'u', password = 12345678 }
librdkafka = { socket.timeout.ms = 30000, 'log.connection.close' = false }
redact = { mask = 'from' }
[sinks.n]
type = 'nats'
servers = 'nats://a:4222'
topic = 'cdr'
stream = { name = 'CDR', max_bytes = '1GiB', max_age = '168h' }
[reconcile.account]
platform = 'telecmi'
appid = 2222223
secret = '0123456789abcdef'
lists = ['missed']
[[tests]]
name = 'one'
event = '{\"status\":\"missed\",\"conversation_uuid\":\"c\"}'
sinks.k.subject = 'cdr.unassigned'
";

/// The mistakes that the schema finds in files.
fn mistakes(dir: &TempDir, files: &[PathBuf]) -> Option<String> {
    let mut python = python(dir.path())?;
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/schema.py"));
    let finished = python.arg(format!("{CONFIG}/schema.json")).args(files).output().unwrap();
    assert!(finished.status.success(), "{}", String::from_utf8_lossy(&finished.stderr));
    Some(String::from_utf8(finished.stdout).unwrap())
}

#[test]
fn the_schema_beside_the_examples_and_in_the_chart_is_that_of_this_version() {
    let file = fs::read_to_string(format!("{CONFIG}/schema.json")).unwrap();
    assert!(cdrelay(&["schema"]).stdout == file, "out of date: run config/update-schema");
    let mut schema: Value = serde_json::from_str(&file).unwrap();
    schema.as_object_mut().unwrap().remove("$schema");
    let chart = fs::read_to_string(format!("{CONFIG}/../deploy/helm/cdrelay/values.schema.json")).unwrap();
    let values: Value = serde_json::from_str(&chart).unwrap();
    assert!(values["$defs"]["cdrelay"] == schema, "out of date: run config/update-schema");
    assert_eq!(values["properties"]["config"]["allOf"], json!([{ "$ref": "#/$defs/cdrelay" }]));
}

#[test]
fn the_schema_and_the_bridge_agree_on_what_is_wrong() {
    let dir = TempDir::new().unwrap();
    let write = |name: String, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let mut files = vec![write("right.toml".into(), RIGHT)];
    for entry in fs::read_dir(CONFIG).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml" || extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            let first = text.lines().next().unwrap();
            assert!(
                ["#:schema schema.json", "# yaml-language-server: $schema=schema.json"].contains(&first),
                "{path:?}"
            );
            files.push(path);
        }
    }
    assert!(files.len() > 5, "{files:?}");
    for (number, (text, _)) in WRONG.iter().enumerate() {
        let sink = if text.contains("[sinks.") { "" } else { "\n[sinks.out]\ntype = 'stdout'\ntopic = 'cdr'\n" };
        let path = write(format!("wrong-{number}.toml"), &format!("{text}{sink}"));
        let checked = cdrelay(&["check", "--print", "--config", path.to_str().unwrap()]);
        assert_eq!(checked.code, Some(78), "{text}: {checked:?}");
        files.push(path);
    }
    let Some(found) = mistakes(&dir, &files) else { return };
    let mut found: Vec<_> = found.lines().collect();
    for (number, (text, place)) in WRONG.iter().enumerate() {
        let of_file = format!("wrong-{number}.toml: ");
        assert!(found.iter().any(|line| line.starts_with(&format!("{of_file}{place}"))), "{text}: {found:#?}");
        found.retain(|line| !line.starts_with(&of_file));
    }
    assert_eq!(found, [""; 0]);
    let right = cdrelay(&["check", "--config", files[0].to_str().unwrap()]);
    assert_eq!(right.code, Some(0), "{right:?}");
}

#[test]
fn the_settings_that_apply_are_printed_with_their_origins_and_without_secrets() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cdrelay.toml");
    fs::write(&path, RIGHT.replace("0123456789abcdef", "hunter2hunter2hunter2")).unwrap();
    let file = path.to_str().unwrap();
    let printed = cdrelay(&["check", "--print", "--config", file, "--set", "spool.max_size=2GiB"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let lines: Vec<_> = printed.stdout.lines().collect();
    let from_file = format!("ingress.max_body = 500000  # {file}");
    for line in [&*from_file, "spool.max_size = \"2GiB\"  # --set", "spool.append_timeout = \"10s\"  # default"] {
        assert!(lines.iter().any(|found| found.starts_with(line)), "{line}: {}", printed.stdout);
    }
    assert!(!printed.stdout.contains("hunter2") && !printed.stdout.contains("12345678"), "{}", printed.stdout);
    // It is a configuration again, with the same settings.
    let settings = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|line| line.split("  # ").next().unwrap().to_owned()).collect()
    };
    let again = Config::from_toml(&printed.stdout.replace("(hidden)", "0123456789abcdef0123")).unwrap();
    let lines: Vec<_> = lines.into_iter().map(String::from).collect();
    assert_eq!(settings(&again.effective(&Registry::default())), settings(&lines));
}
