//! A Kafka of one test's own: one node in a temporary directory, on ports that it keeps.

use std::env;
use std::ffi::OsString;
use std::fs::{read_to_string, remove_dir_all, write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, free_port, tls};

/// Whom [`Broker::start_sasl_tls`] lets in.
pub const USER: &str = "cdrelay";
pub const PASSWORD: &str = "correct horse";

/// Killed, and its data deleted, when dropped.
pub struct Broker {
    process: Process,
    port: u16,
    secure_port: Option<u16>,
    directory: TempDir,
}

impl Broker {
    /// Starts a broker. The overrides are server properties, such as `("message.max.bytes", "2000")`.
    pub async fn start(overrides: &[(&str, &str)]) -> Self {
        Self::start_in(TempDir::new().unwrap(), None, overrides).await
    }

    /// Starts a broker that has a second listener, [`Self::secure_address`]: TLS, and SASL by PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 for
    /// [`USER`] with [`PASSWORD`]. The first one stays open to anyone, for topics and consumers.
    pub async fn start_sasl_tls(overrides: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        let key = tls::issue(directory.path()).key_and_certificate;
        let plain = plain_login(PASSWORD);
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let mut properties = vec![
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"),
            ("listener.name.sasl_ssl.ssl.keystore.type", "PEM"),
            ("listener.name.sasl_ssl.ssl.keystore.location", key.to_str().unwrap()),
            ("listener.name.sasl_ssl.plain.sasl.jaas.config", &plain),
            ("listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config", scram),
            ("listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config", scram),
        ];
        properties.extend(overrides);
        Self::start_in(directory, Some(free_port()), &properties).await
    }

    /// Starts a broker that has a second way to it, over the proxy's address: who asks the broker there is told to stay on that way.
    pub async fn start_behind_proxy() -> (Self, Proxy) {
        let (port, controller, proxied) = (free_port(), free_port(), free_port());
        let proxy = Proxy::start(format!("127.0.0.1:{proxied}")).await;
        let listeners = [
            format!("PLAINTEXT://127.0.0.1:{port}"),
            format!("PROXIED://127.0.0.1:{proxied}"),
            format!("CONTROLLER://127.0.0.1:{controller}"),
        ];
        let advertised = format!("PLAINTEXT://127.0.0.1:{port},PROXIED://{}", proxy.address());
        let properties = [
            ("listeners", listeners.join(",")),
            ("advertised.listeners", advertised),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned()),
            ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
        ];
        let properties = properties.each_ref().map(|(key, value)| (*key, value.as_str()));
        (Self::start_node(TempDir::new().unwrap(), port, None, &properties).await, proxy)
    }

    async fn start_in(directory: TempDir, secure_port: Option<u16>, overrides: &[(&str, &str)]) -> Self {
        let (port, controller) = (free_port(), free_port());
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
        if let Some(port) = secure_port {
            listeners += &format!(",SASL_SSL://127.0.0.1:{port}");
        }
        let voters = format!("1@127.0.0.1:{controller}");
        let own = [("listeners", listeners.as_str()), ("controller.quorum.voters", &voters)];
        Self::start_node(directory, port, secure_port, &[&own, overrides].concat()).await
    }

    /// Starts a node with these properties, which say what it listens on and whom it elects a controller with.
    pub(super) async fn start_node(
        directory: TempDir,
        port: u16,
        secure_port: Option<u16>,
        properties: &[(&str, &str)],
    ) -> Self {
        let mut text = include_str!("../kafka.properties").to_owned();
        text += &format!("log.dirs={}\n", directory.path().join("data").display());
        for (key, value) in properties {
            text += &format!("{key}={value}\n");
        }
        write(directory.path().join("server.properties"), text).unwrap();
        format(directory.path()).await;
        let process = launch(directory.path(), port).await;
        Self { process, port, secure_port, directory }
    }

    /// Overrides server properties from its next start on.
    pub fn set(&self, overrides: &[(&str, &str)]) {
        let path = self.directory.path().join("server.properties");
        let mut text = read_to_string(&path).unwrap();
        for (key, value) in overrides {
            // The last one counts.
            text += &format!("{key}={value}\n");
        }
        write(path, text).unwrap();
    }

    /// Gives [`Self::secure_address`] a new certificate by a new [`Self::authority`], used from its next start on. Returns the files.
    pub fn renew_certificate(&self) -> tls::Files {
        tls::issue(self.directory.path())
    }

    /// Where anyone may connect without TLS.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where [`USER`] may connect with TLS.
    pub fn secure_address(&self) -> String {
        format!("127.0.0.1:{}", self.secure_port.expect("started by start_sasl_tls"))
    }

    /// The certificate that a client of [`Self::secure_address`] has to trust, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("authority.pem")
    }

    /// SIGKILL
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and waits until it has ended.
    pub async fn stop(&mut self) {
        self.process.terminate();
        self.process.wait(PATIENCE).await;
    }

    /// Starts a killed or stopped broker again with its port and its data.
    pub async fn start_again(&mut self) {
        self.process = launch(self.directory.path(), self.port).await;
    }

    /// Empties the disk of a killed or stopped broker: it knows of no topic any more.
    pub async fn forget(&self) {
        remove_dir_all(self.directory.path().join("data")).unwrap();
        format(self.directory.path()).await;
    }

    /// SIGSTOP: it answers nothing, yet its connections stay open.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// SIGCONT
    pub fn resume(&self) {
        self.process.resume();
    }
}

/// The property `listener.name.sasl_ssl.plain.sasl.jaas.config` that lets [`USER`] in with this password.
pub fn plain_login(password: &str) -> String {
    format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{password}\";")
}

async fn format(directory: &Path) {
    let mut format = java("kafka.tools.StorageTool");
    format.args(["format", "--cluster-id", "cdrelay-tests-00000000"]);
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        format.arg("--add-scram").arg(format!("{mechanism}=[name={USER},password={PASSWORD}]"));
    }
    format.arg("--config").arg(directory.join("server.properties"));
    let output = spawn_blocking(move || format.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "cannot format: {}", String::from_utf8_lossy(&output.stderr));
}

/// Kafka opens its port when it is ready to serve.
async fn launch(directory: &Path, port: u16) -> Process {
    let log = directory.join("broker.log");
    let mut process = Process::spawn(java("kafka.Kafka").arg(directory.join("server.properties")), &log, &log);
    process.listening(port).await;
    process
}

/// A command that runs a class of Kafka's.
pub(super) fn java(class: &str) -> Command {
    let mut class_path: OsString = env::var_os("CDRELAY_TEST_KAFKA_LIBS")
        .expect("CDRELAY_TEST_KAFKA_LIBS names no Kafka: run tests/run, which fetches one");
    class_path.push("/*");
    let mut command = Command::new("java");
    // Small, and soon there rather than fast once warm.
    command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]);
    command.arg("-Dorg.apache.logging.log4j.level=WARN").arg("-cp").arg(class_path).arg(class);
    command
}
