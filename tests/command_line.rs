//! The command line tells what is wrong, where, and what would be right, and its exit code says of which kind it is.

mod connect;

use crate::support::bridge;
use std::fs;
use std::net::TcpListener;
use std::process::Command;
use tempfile::TempDir;

/// How a run of the program ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// What it wrote to stdout, if it ended well.
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }
}

/// Runs the program to its end.
pub fn cdrelay(arguments: &[&str]) -> Finished {
    finished(bridge::command().args(arguments))
}

/// Runs this to its end.
pub fn finished(command: &mut Command) -> Finished {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let finished = cdrelay(arguments);
    assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "{arguments:?} does not say {word:?}: {}", finished.stderr);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let help = cdrelay(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    assert!(help.stdout.contains("check") && help.stdout.contains("--config"), "{}", help.stdout);
    let version = cdrelay(&["--version"]);
    assert_eq!((version.code, version.stdout), (Some(0), format!("cdrelay {}\n", env!("CARGO_PKG_VERSION"))));
}

/// What a first `check` is for: one round of corrections, not ten.
#[test]
fn check_tells_all_mistakes_at_once() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cdrelay.toml");
    let toml = "[spool]\npaht = 'x'\nmax_size = 'big'\n[sinks.k]\ntype = 'kafka'\nbroker = 'a:1'\nlinger = 'soon'\n[sinks.x]\ntype = 'stdut'\n";
    fs::write(&path, toml).unwrap();
    let file = path.to_str().unwrap();
    let words = [
        "`spool.paht`",
        "did you mean `path`?",
        "`spool.max_size`",
        "`sinks.k.broker`",
        "`sinks.k.linger`",
        "`stdout`?",
        file,
    ];
    refused(&["check", "--config", file], 78, &words);

    let missing = "[[ingress.auth]]\ntype = 'bearer'\nsecret_files = '/nowhere/secret'\n[sinks.n]\ntype = 'nats'\nuser = 'u'\npassword_file = '/nowhere/password'\n";
    fs::write(&path, missing).unwrap();
    refused(&["check", "--config", file], 78, &["`ingress.auth.0.secret_files.0`", "`sinks.n`: `password_file`", file]);
}

#[test]
fn a_wrong_command_line_exits_with_64() {
    refused(&["--bogus"], 64, &["--bogus"]);
    refused(&["publish"], 64, &["publish"]);
    refused(&["check", "--config"], 64, &["--config"]);
    refused(&["dead-letters", "list", "--spool", "/nowhere", "--sink", "x", "--since", "soon"], 64, &["--since", "2h"]);
}

#[test]
fn a_wrong_configuration_exits_with_78_and_says_where_what_and_what_else() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let stdout = "[sinks.out]\ntype = 'stdout'\n";
    for command in ["check", "run"] {
        let typo = file("typo.toml", &format!("{stdout}[spool]\npaht = 'x'\n"));
        refused(&[command, "--config", &typo], 78, &["typo.toml: ", "`spool.paht`", "is unknown", "path, max_size"]);
        let wrong = file("wrong.yaml", "sinks:\n  out:\n    type: kafak\n");
        refused(
            &[command, "--config", &wrong],
            78,
            &["wrong.yaml: ", "`sinks.out.type`", "kafak", "stdout, kafka, nats"],
        );
        refused(&[command, "--config", "/nowhere/cdrelay.toml"], 78, &["/nowhere/cdrelay.toml: ", "No such file"]);
        let ini = file("cdrelay.ini", stdout);
        refused(&[command, "--config", &ini], 78, &["cdrelay.ini: ", ".toml, .yaml or .yml"]);
        let torn = file("torn.toml", "[sinks.");
        refused(&[command, "--config", &torn], 78, &["torn.toml", "line 1"]);
        refused(&[command, "--set", "log.level"], 78, &["KEY=VALUE"]);
        refused(
            &[command, "--set", "shutdown.grace_period=soon"],
            78,
            &["--set: ", "`shutdown.grace_period`", "\"soon\"", "30s"],
        );
        // `run` takes its ports before it makes its sinks.
        let secret = "[ingress]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n\
                      [sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\n\
                      [sinks.k.sasl]\nmechanism = 'PLAIN'\nusername = 'u'\npassword_file = '/nowhere/password'\n";
        let secret = file("secret.toml", secret);
        refused(&[command, "--config", &secret], 78, &["`sinks.k`", "`password_file`", "/nowhere/password"]);
    }
}

#[test]
fn check_refuses_a_placeholder_that_can_never_have_a_value() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cdrelay.toml");
    for (placeholder, word) in [
        ("{query.token}", "secret"),
        ("{labels.region}", "label `region`"),
        ("{ingress.name}", "never have a value"),
        ("{query.}", "proper name"),
    ] {
        let auth =
            "[[ingress.auth]]\ntype = 'query'\nparameter = 'token'\nsecrets = ['0123456789abcdef0123456789abcdef']";
        let config = format!("{auth}\n[sinks.out]\ntype = 'stdout'\ntopic = 'cdr.{placeholder}'\n");
        fs::write(&path, config).unwrap();
        refused(&["check", "--config", path.to_str().unwrap()], 78, &["`sinks.out.topic`", word]);
    }
}

#[test]
fn several_files_are_merged_in_order() {
    let directory = TempDir::new().unwrap();
    let (first, second) = (directory.path().join("a.toml"), directory.path().join("b.yaml"));
    fs::write(&first, "[sinks.out]\ntype = 'stdout'\nmax_in_flight = 0\n").unwrap();
    fs::write(&second, "sinks:\n  out:\n    max_in_flight: 1\n").unwrap();
    let (first, second) = (first.to_str().unwrap(), second.to_str().unwrap());
    refused(&["check", "--config", first], 78, &["a.toml: ", "`sinks.out.max_in_flight`"]);
    let both = cdrelay(&["check", "--config", first, "--config", second]);
    assert_eq!((both.code, both.stdout.as_str()), (Some(0), "configuration is sound: 1 sink(s)\n"), "{both:?}");
}

#[test]
fn what_the_system_refuses_exits_with_1_and_names_the_setting() {
    let directory = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let spool = format!("spool.path={}", directory.path().join("spool").display());
    let listen = format!("ingress.listen={address}");
    let arguments = ["--set", &spool, "--set", &listen, "--set", "admin.listen=127.0.0.1:0"];
    refused(&arguments, 1, &["`ingress.listen`", &address, "in use"]);

    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let spool = format!("spool.path={}", file.display());
    let anywhere = ["--set", "ingress.listen=127.0.0.1:0", "--set", "admin.listen=127.0.0.1:0"];
    refused(&[&anywhere[..], &["--set", &spool]].concat(), 1, &["spool ", file.to_str().unwrap()]);
}
