//! The documents agree with the program: examples, tables of settings with their defaults, metrics, links.

use crate::command_line::cdrelay;
use crate::support::bridge::Bridge;
use crate::support::{PATIENCE, eventually};
use cdrelay::config::Config;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const README: &str = include_str!("../README.md");
const DOCUMENTS: [(&str, &str); 7] = [
    ("README.md", README),
    ("config/README.md", include_str!("../config/README.md")),
    ("deploy/README.md", include_str!("../deploy/README.md")),
    ("tests/README.md", include_str!("README.md")),
    ("benches/README.md", include_str!("../benches/README.md")),
    ("SECURITY.md", include_str!("../SECURITY.md")),
    ("CONTRIBUTING.md", include_str!("../CONTRIBUTING.md")),
];

/// The lines of all documents.
fn lines() -> impl Iterator<Item = &'static str> {
    DOCUMENTS.into_iter().flat_map(|(_, text)| text.lines())
}
const PORTS: &str = "[ingress]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n";

#[tokio::test]
async fn the_first_webhook_prints_what_is_shown() {
    let body =
        README.lines().find_map(|line| line.strip_prefix("curl -d '")?.strip_suffix("' localhost:8080/webhook/cdr"));
    let body = body.unwrap();
    let bridge = Bridge::start(&format!("{PORTS}[sinks.stdout]\ntype = 'stdout'\n")).await;
    // What `curl -d` sends.
    let form = "application/x-www-form-urlencoded";
    assert_eq!(bridge.post(body, form).await.text(), "{\"stored\":1,\"duplicates\":0}\n");
    assert_eq!(bridge.post(body, form).await.text(), "{\"stored\":0,\"duplicates\":1}\n");
    assert!(
        README.contains("`{\"stored\":1,\"duplicates\":0}`") && README.contains("`{\"stored\":0,\"duplicates\":1}`")
    );

    eventually(PATIENCE, "one line", async || !bridge.stdout_lines().is_empty()).await;
    let shown: String = blocks("json")[0].lines().map(str::trim_start).collect();
    assert_eq!(without_time(&bridge.stdout_lines()[0]), without_time(&shown));
}

fn without_time(line: &str) -> String {
    let (before, after) = line.split_once("\"ce_time\":\"").unwrap();
    format!("{before}{}", after.split_once('"').unwrap().1)
}

#[test]
fn every_piece_of_configuration_is_sound() {
    let directory = TempDir::new().unwrap();
    let blocks = blocks("toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        let path = directory.path().join("cdrelay.toml");
        // What is in the files of secrets it checks too.
        let here = format!("{}/", directory.path().display());
        for file in block.split("\"/etc/cdrelay/secrets/").skip(1) {
            let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n";
            fs::write(directory.path().join(file.split('"').next().unwrap()), secret).unwrap();
        }
        let block = block.replace("/etc/cdrelay/secrets/", &here);
        fs::write(&path, &block).unwrap();
        let finished = cdrelay(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(finished.code, Some(0), "{block}{}", finished.stderr);
    }
}

#[test]
fn every_flag_and_file_named_exists() {
    let help = cdrelay(&["run", "--help"]).stdout + &cdrelay(&["check", "--help"]).stdout;
    let ours = lines().filter_map(|line| {
        let (_, arguments) = line
            .split_once("release -- ")
            .or_else(|| line.split_once("cdrelay ["))
            .or_else(|| line.split_once("cdrelay check"))?;
        Some(arguments)
    });
    let flags: BTreeSet<_> = ours
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.trim_matches(['[', ']', '`']).strip_prefix("--"))
        .collect();
    assert_eq!(flags, ["config", "connect", "print", "set"].into());
    assert!(flags.iter().all(|flag| help.contains(&format!("--{flag} "))), "{help}");

    let headings =
        |text: &str| text.lines().filter_map(|line| Some(anchor(line.strip_prefix('#')?))).collect::<Vec<_>>();
    for (path, text) in DOCUMENTS {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for link in links.filter(|link| !link.starts_with("https://")) {
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
            let target = match file {
                "" => Path::new(path).to_owned(),
                file => Path::new(path).parent().unwrap().join(file),
            };
            let target = fs::read_to_string(&target).unwrap_or_else(|error| panic!("{path}: {link}: {error}"));
            if let Some(heading) = heading {
                assert!(headings(&target).contains(&heading.to_owned()), "{path}: no heading {link}");
            }
        }
    }
    let examples = DOCUMENTS.into_iter().flat_map(|(_, text)| text.split("--config config/").skip(1));
    let examples = examples.filter_map(|rest| rest.split_whitespace().next());
    for example in examples {
        assert!(fs::exists(format!("config/{example}")).unwrap(), "{example}");
    }
}

fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|character| character.is_alphanumeric() || "-_".contains(*character)).collect()
}

#[test]
fn every_command_shown_exists_with_its_flags() {
    let shown: Vec<Vec<&str>> = lines()
        .filter_map(|line| line.strip_prefix("cdrelay "))
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<&str>| !words[0].starts_with('[') && words[0] != "check")
        .collect();
    assert!(shown.len() >= 7, "{shown:?}");
    for words in shown {
        let command: Vec<&str> =
            words.iter().copied().take_while(|word| !word.starts_with("--")).chain(["--help"]).collect();
        let help = cdrelay(&command).stdout;
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            let listed = |line: &str| format!("{} ", line.trim()).starts_with(&format!("{flag} "));
            assert!(help.lines().any(listed), "{command:?} has no {flag}: {help}");
        }
    }
}

#[test]
fn the_flags_of_a_soak_are_those_of_the_program() {
    let help = cdrelay(&["soak", "--help"]).stdout;
    let exist: BTreeSet<_> = help.split_whitespace().filter_map(|word| word.strip_prefix("--")).collect();
    let rows: Vec<_> = table("See it yourself").into_iter().filter(|row| row[0].starts_with("`--")).collect();
    let flags = rows.iter().flat_map(|row| row[0].split('`')).filter_map(|word| word.strip_prefix("--"));
    let documented: BTreeSet<_> = flags.chain(["help", "set", "config"]).collect();
    assert!(exist.is_superset(&documented), "{help}");
    let options: BTreeSet<_> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--").or_else(|| line.trim_start().strip_prefix("-h, --")))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(documented, options);
    for row in rows.iter().filter(|row| row[1].starts_with(|first: char| first.is_ascii_digit())) {
        let flag = code(&row[0]).unwrap();
        let (_, described) = help.split_once(&format!("{flag} <")).unwrap();
        let (_, default) = described.split_once("[default: ").unwrap();
        assert_eq!(default.split(']').next(), Some(row[1].as_str()), "{flag}");
    }
}

/// A table of settings: its heading, what makes the section legal, and its place.
const TABLES: &[(&str, &[&str], &str)] = &[
    ("`[ingress]`", &[], "ingress"),
    ("`[ingress.routes.NAME]`", &["ingress.routes.x.path=/x"], "ingress.routes.x"),
    ("`[[ingress.auth]]`", &[], "ingress.auth.0"),
    ("`[ingress.tls]`", &[], "ingress.tls"),
    ("`[ingress.proxy_protocol]`", &[], "ingress.proxy_protocol"),
    ("`[ingress.decode]`", &[], "ingress.decode"),
    ("`[ingress.rejected]`", &[], "ingress.rejected"),
    ("`[dead_letters]`", &[], "dead_letters"),
    ("`[admin]`", &[], "admin"),
    ("`[spool]`", &[], "spool"),
    ("`[spool.retain]`", &["spool.retain.age=1h"], "spool.retain"),
    ("`[reconcile.NAME]`", &["reconcile.x.platform=telecmi"], "reconcile.x"),
    ("`[shutdown]`", &[], "shutdown"),
    ("`[log]`", &[], "log"),
    ("`[reload]`", &[], "reload"),
    ("`[[tests]]`", &["tests=[{name=\"x\",event=\"{}\",sinks={},unknown=1}]"], "tests.0"),
    ("`[tests.sinks.NAME]`", &["tests=[{name=\"x\",event=\"{}\",sinks={x={unknown=1}}}]"], "tests.0.sinks.x"),
    ("`[sinks.NAME]`", &["sinks.x.type=stdout"], "sinks.x"),
    ("`[sinks.NAME.redact]`", &["sinks.x.type=stdout"], "sinks.x.redact"),
    ("`[sinks.NAME.retry]`", &["sinks.x.type=stdout"], "sinks.x.retry"),
    ("`[sinks.NAME]` of Kafka", &KAFKA, "sinks.x"),
    ("`[sinks.NAME.tls]` of Kafka", &KAFKA, "sinks.x.tls"),
    ("`[sinks.NAME.sasl]` of Kafka", &KAFKA, "sinks.x.sasl"),
    ("`[sinks.NAME.schema_registry]` of Kafka", &KAFKA, "sinks.x.schema_registry"),
    ("`[sinks.NAME]` of NATS", &["sinks.x.type=nats"], "sinks.x"),
    ("`[sinks.NAME.tls]` of NATS", &["sinks.x.type=nats"], "sinks.x.tls"),
];
const KAFKA: [&str; 2] = ["sinks.x.type=kafka", "sinks.x.brokers=a:1"];
const STREAM: (&str, &[&str], &str) = ("`[sinks.NAME.stream]` of NATS", &["sinks.x.type=nats"], "sinks.x.stream");

/// The program itself lists what it allows when it meets an unknown key.
#[test]
fn the_tables_hold_exactly_the_settings_there_are() {
    let common = allowed(&["sinks.x.type=stdout"], "sinks.x");
    let mut documented = BTreeSet::new();
    for (heading, settings, place) in TABLES.iter().copied().chain([STREAM]) {
        let mut expected = allowed(settings, place);
        if place == "sinks.x" && heading != "`[sinks.NAME]`" {
            expected = &expected - &common;
        }
        let keys: BTreeSet<_> = table(heading).into_iter().map(|row| code(&row[0]).unwrap().to_owned()).collect();
        assert_eq!(keys, expected, "{heading}");
        documented.insert(place.split('.').next().unwrap().to_owned());
    }
    assert_eq!(documented, allowed(&[], ""));
}

fn allowed(settings: &[&str], place: &str) -> BTreeSet<String> {
    if place == "ingress.auth.0" {
        // Each type has keys of its own.
        let types = table("`[[ingress.auth]]`").into_iter().find(|row| row[0] == "`type`").unwrap().remove(2);
        let quoted: Vec<_> = types.split('"').skip(1).step_by(2).collect();
        let keys =
            quoted.iter().flat_map(|kind| unknown(&[&format!("ingress.auth=[{{type=\"{kind}\",unknown=1}}]")], place));
        return keys.chain(["type".to_owned()]).collect();
    }
    if place.starts_with("tests.0") {
        return unknown(settings, place);
    }
    let unknown = if place.is_empty() { "unknown".to_owned() } else { format!("{place}.unknown") };
    let setting = format!("{unknown}=1");
    self::unknown(&settings.iter().copied().chain([setting.as_str()]).collect::<Vec<_>>(), place)
}

/// The keys that are allowed in place of `unknown` in the table at `place`.
fn unknown(settings: &[&str], place: &str) -> BTreeSet<String> {
    let unknown = if place.is_empty() { "unknown".to_owned() } else { format!("{place}.unknown") };
    let settings = settings.iter().copied();
    let arguments = ["check"].into_iter().chain(settings.flat_map(|setting| ["--set", setting]));
    let stderr = cdrelay(&arguments.collect::<Vec<_>>()).stderr;
    let (_, list) =
        stderr.split_once(&format!("`{unknown}`: is unknown; allowed are ")).unwrap_or_else(|| panic!("{stderr}"));
    list.lines().next().unwrap().split(", ").map(str::to_owned).collect()
}

/// With every default of the tables written down, the configuration is the one without.
#[test]
fn the_defaults_are_those_of_the_program() {
    let mut defaults: BTreeMap<&str, String> = BTreeMap::new();
    let mut count = 0;
    for (heading, ..) in TABLES.iter().copied().chain([STREAM]) {
        for row in table(heading) {
            if let Some(default) = code(&row[1]) {
                *defaults.entry(heading).or_default() += &format!("{} = {default}\n", code(&row[0]).unwrap());
                count += 1;
            }
        }
    }
    assert!(count > 30, "{defaults:?}");
    let text = |written: bool| {
        let of =
            |heading: &str| if written { defaults.get(heading).cloned().unwrap_or_default() } else { String::new() };
        let (sink, kafka, nats) = (of("`[sinks.NAME]`"), of("`[sinks.NAME]` of Kafka"), of("`[sinks.NAME]` of NATS"));
        let own = [
            "ingress",
            "ingress.decode",
            "ingress.rejected",
            "admin",
            "spool",
            "dead_letters",
            "shutdown",
            "log",
            "reload",
        ];
        let mut text: String = own.iter().map(|name| format!("[{name}]\n{}", of(&format!("`[{name}]`")))).collect();
        text += "[ingress.tls]\ncert_file = 'c'\nkey_file = 'k'\nclient_ca_file = 'a'\n";
        text += &of("`[ingress.tls]`");
        text += "[reconcile.x]\nplatform = 'telecmi'\nappid = 1\nsecret_file = 's'\n";
        text += &of("`[reconcile.NAME]`");
        text += &format!("[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\n{sink}{kafka}");
        text += &format!("[sinks.k.retry]\n{}", of("`[sinks.NAME.retry]`"));
        text += &format!("[sinks.k.tls]\n{}", of("`[sinks.NAME.tls]` of Kafka"));
        text += &format!("[sinks.n]\ntype = 'nats'\n{sink}{nats}[sinks.n.tls]\n{}", of("`[sinks.NAME.tls]` of NATS"));
        text + &format!("[sinks.n.stream]\nname = 'S'\n{}", of(STREAM.0))
    };
    let config = |written| format!("{:#?}", Config::from_toml(&text(written)).unwrap());
    assert_eq!(config(true), config(false));
}

#[tokio::test]
async fn the_metrics_are_those_of_the_program() {
    let reconcile = "[reconcile.x]\nplatform = 'telecmi'\nappid = 1\nsecret = 's'\nevery = '0s'\n";
    let bridge = Bridge::start(&format!("{PORTS}{reconcile}[sinks.stdout]\ntype = 'stdout'\n")).await;
    bridge.post("{}", "application/json").await;
    let metrics = bridge.admin("/metrics").await;
    let families = metrics.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let exposed: BTreeSet<_> = families.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    let documented: BTreeSet<_> =
        table("Metrics").into_iter().map(|row| (code(&row[0]).unwrap().to_owned(), row[1].clone())).collect();
    assert_eq!(documented, exposed);
    let paths: Vec<_> = table("Admin port").into_iter().map(|row| code(&row[0]).unwrap().to_owned()).collect();
    for path in &paths {
        assert_eq!(bridge.admin(path).await.status, 200, "{path}");
    }
    assert_eq!(
        bridge.admin("/").await.text().split_whitespace().collect::<BTreeSet<_>>(),
        paths.iter().map(String::as_str).collect()
    );
    for name in lines().flat_map(|line| line.split('`')).filter(|span| span.starts_with("cdrelay_")) {
        let family = name.split('{').next().unwrap();
        assert!(documented.iter().any(|(known, _)| known == family), "{name}");
    }
}

#[tokio::test]
async fn a_dead_letter_has_the_members_shown() {
    // An event without the field would have a topic without a name.
    let bridge = Bridge::start(&format!("{PORTS}[sinks.name]\ntype = 'stdout'\ntopic = '{{nothing}}'\n")).await;
    bridge.post(r#"{"type":"cdr"}"#, "application/json").await;
    eventually(PATIENCE, "a dead letter", async || bridge.dead_letters("name").len() == 1).await;
    let letter: BTreeMap<String, serde_json::Value> =
        serde_json::from_value(bridge.dead_letters("name").remove(0)).unwrap();
    let mut members: BTreeSet<_> =
        table("Dead letters").into_iter().map(|row| code(&row[0]).unwrap().to_owned()).collect();
    assert!(members.remove("query"), "there was none");
    assert_eq!(members, letter.keys().cloned().collect());
    eventually(PATIENCE, "counted", async || {
        bridge.metric("cdrelay_sink_dead_lettered_total{sink=\"name\"}").await == Some(1.0)
    })
    .await;
}

#[tokio::test]
async fn a_body_that_could_not_be_decoded_has_the_members_shown() {
    let bridge = Bridge::start(&format!("{PORTS}[sinks.stdout]\ntype = 'stdout'\n")).await;
    let query = format!("a={}", "&a=".repeat(1001));
    for body in [&b"{ a: 1 }"[..], b"{\"\xff\": 1}"] {
        assert_eq!(bridge.post(body, "application/json").await.status, 400);
    }
    assert_eq!(bridge.get(&query).await.status, 400);
    eventually(PATIENCE, "they are kept", async || {
        bridge.metric("cdrelay_ingress_rejected_kept_total").await == Some(3.0)
    })
    .await;
    let members: BTreeSet<_> = bridge
        .rejected_bodies()
        .into_iter()
        .flat_map(|body| serde_json::from_value::<BTreeMap<String, serde_json::Value>>(body).unwrap().into_keys())
        .collect();
    let rows = table("Bodies that could not be decoded");
    let documented = rows.iter().flat_map(|row| row[0].split(", ")).map(|cell| code(cell).unwrap().to_owned());
    assert_eq!(documented.collect::<BTreeSet<_>>(), members);
}

/// The code blocks in this language.
fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let texts = DOCUMENTS.into_iter().flat_map(|(_, text)| text.split(&fence).skip(1));
    texts.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The rows of the table under a heading, without its head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let start = lines().position(|line| line.trim_start_matches('#').trim() == heading && line.starts_with('#'));
    let below = lines().skip(start.unwrap_or_else(|| panic!("no heading {heading}")) + 1);
    let rows = below.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with('|')).skip(2);
    let cells = |row: &str| {
        let row = row.trim_matches('|').replace("\\|", "\0");
        row.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
    };
    rows.map(cells).collect()
}

/// What a cell says that is nothing but code.
fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`').filter(|code| !code.contains('`'))
}
