//! The settings of a Kafka sink, and the librdkafka properties made of them.

use super::SchemaRegistry;
use super::properties::Properties;
use super::status::STATISTICS;
use crate::setting::{List, Secret, period};
use crate::sink::SetupError;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of a Kafka sink, beside those every sink has.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Bootstrap servers: `"a:9092,b:9092"` or `["a:9092", "b:9092"]`.
    pub brokers: List<String>,
    /// Encrypts the connections. An empty table is enough where the brokers' certificate comes from a public authority.
    pub tls: Option<Tls>,
    /// Logs in with a user name and a password.
    pub sasl: Option<Sasl>,
    /// Compression of batches. None by default, as in Kafka's own producer: every consumer can read that, while several clients
    /// need an extra codec for lz4, snappy or zstd.
    #[serde(default)]
    pub compression: Compression,
    /// How long a message waits for others to share its batch. A conversation has one message in flight, so this adds to the time
    /// between two of its events.
    #[serde(default = "default_linger", with = "period")]
    pub linger: Duration,
    /// The client's name in the brokers' logs, quotas and metrics.
    #[serde(default = "default_client_id")]
    pub client_id: String,
    /// The schema registry of the format `json-schema`.
    pub schema_registry: Option<SchemaRegistry>,
    /// Further librdkafka properties, applied last: <https://github.com/confluentinc/librdkafka/blob/v2.12.1/CONFIGURATION.md>.
    /// `"socket.timeout.ms" = 30000` and `socket.timeout.ms = 30000` mean the same.
    #[serde(default)]
    pub librdkafka: Properties,
}

/// Encryption, and the client's certificate where the brokers ask for one. Changed files are used by a new producer within seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// `false` switches a configured table off again, from the environment for example.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// PEM file of the authorities that may sign the brokers' certificates; the system's by default.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's private key.
    pub key_file: Option<PathBuf>,
    /// Password of the encrypted private key.
    pub key_password: Option<Secret>,
    /// The file that holds `key_password`.
    pub key_password_file: Option<PathBuf>,
    /// Whether a broker's certificate must carry the name it was reached by. The certificate is verified either way.
    #[serde(default = "yes")]
    pub verify_hostname: bool,
}

/// A login.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// How the password is proven. `PLAIN` tells it to the broker: use it with `tls` only.
    pub mechanism: Mechanism,
    /// The user.
    pub username: String,
    /// The user's password.
    pub password: Option<Secret>,
    /// The file that holds `password`. A changed file is used by a new producer within seconds.
    pub password_file: Option<PathBuf>,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    /// The password as it is.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Challenge and response over SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// Challenge and response over SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// A compression codec of Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

fn default_linger() -> Duration {
    Duration::from_millis(1)
}

fn default_client_id() -> String {
    "cdrelay".to_owned()
}

fn yes() -> bool {
    true
}

impl Config {
    /// The producer's properties, every name and value checked by librdkafka. Reads passwords from their files; those of
    /// certificates are read when the producer is made.
    pub(super) fn client(&self) -> Result<ClientConfig, SetupError> {
        let mut client = self.connection()?;
        for (property, value) in [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // Never: the spool is the buffer, and a message given up here might still be appended after its own successor.
            ("message.timeout.ms", "0"),
            // The broker knows its limit, so it decides. Ours only keeps a request below what a broker reads at all
            // (`socket.request.max.bytes`, 104857600 by default); past that it would hang up, and we would try for ever.
            ("message.max.bytes", "100000000"),
            // The sink bounds the queue itself, for each partition; these must not strike first.
            ("queue.buffering.max.kbytes", "2147483647"),
            ("queue.buffering.max.messages", "0"),
            // A mistyped topic must not come to life with one partition and a week of retention.
            ("allow.auto.create.topics", "false"),
            // Messages of a deleted topic fail this soon.
            ("topic.metadata.propagation.max.ms", "3000"),
            // How long a broker may take to get a message to its replicas: less than its answer is waited for.
            ("request.timeout.ms", "20000"),
        ] {
            client.set(property, value);
        }
        client.set("statistics.interval.ms", STATISTICS.as_millis().to_string());
        client.set("linger.ms", (self.linger.as_secs_f64() * 1000.0).to_string());
        client.set("compression.type", format!("{:?}", self.compression).to_lowercase());
        self.librdkafka.apply(&mut client)?;
        client.create_native_config().map_err(|error| refused(&error))?;
        Ok(client)
    }

    /// The properties of a consumer that reaches the same brokers as the same user. It may be assigned partitions; it commits nothing
    /// and joins no group. Where an offset is gone it goes on with the oldest.
    pub fn consumer(&self) -> Result<ClientConfig, SetupError> {
        let mut client = self.connection()?;
        self.librdkafka.apply(&mut client)?;
        for (property, value) in [
            ("group.id", "librdkafka demands one"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "false"),
            ("auto.offset.reset", "earliest"),
            ("allow.auto.create.topics", "false"),
            ("queued.max.messages.kbytes", "4096"),
        ] {
            client.set(property, value);
        }
        client.create_native_config().map_err(|error| refused(&error))?;
        Ok(client)
    }

    /// The files that a producer is made from.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let tls = self.tls.iter().filter(|tls| tls.enabled);
        let tls = tls.flat_map(|tls| [&tls.ca_file, &tls.cert_file, &tls.key_file, &tls.key_password_file]);
        tls.chain(self.sasl.iter().map(|sasl| &sasl.password_file)).flatten()
    }

    /// The bootstrap servers, with commas between them.
    pub(super) fn bootstrap_servers(&self) -> String {
        let brokers = self.brokers.0.iter().flat_map(|text| text.split(','));
        brokers.map(str::trim).collect::<Vec<_>>().join(",")
    }

    /// How to reach the brokers, and as whom.
    fn connection(&self) -> Result<ClientConfig, SetupError> {
        let brokers = self.bootstrap_servers();
        if brokers.split(',').any(str::is_empty) {
            return Err(SetupError("`brokers` names no broker; give one or more as \"host:9092\"".into()));
        }
        let mut client = ClientConfig::new();
        // Debug lines cost nothing until the property `debug` asks for some.
        client.set_log_level(RDKafkaLogLevel::Debug);
        client.set("bootstrap.servers", brokers);
        client.set("client.id", &self.client_id);
        // A cluster that comes back is found within this time.
        client.set("reconnect.backoff.max.ms", "2000");
        // A firewall drops the packets of a connection it has forgotten: a request waits for so long before another connection is
        // tried. Java clients wait 30 s as well.
        client.set("socket.timeout.ms", "30000");
        client.set("socket.keepalive.enable", "true");
        self.secure(&mut client)?;
        Ok(client)
    }

    fn secure(&self, client: &mut ClientConfig) -> Result<(), SetupError> {
        let tls = self.tls.as_ref().filter(|tls| tls.enabled);
        if let Some(tls) = tls {
            for (property, file) in [("ssl.certificate.location", &tls.cert_file), ("ssl.key.location", &tls.key_file)]
            {
                if let Some(file) = file {
                    client.set(property, file.to_string_lossy());
                }
            }
            // "probe" looks where the distributions keep the system's authorities: a vendored OpenSSL would look in its own prefix.
            let ca = tls.ca_file.as_ref().map_or("probe".into(), |file| file.to_string_lossy());
            client.set("ssl.ca.location", ca);
            let password =
                Secret::resolve("key_password", tls.key_password.as_ref(), tls.key_password_file.as_deref())?;
            if let Some(password) = password {
                client.set("ssl.key.password", password.reveal());
            }
            client.set("ssl.endpoint.identification.algorithm", if tls.verify_hostname { "https" } else { "none" });
        }
        if let Some(sasl) = &self.sasl {
            let password = Secret::resolve("password", sasl.password.as_ref(), sasl.password_file.as_deref())?
                .ok_or_else(|| SetupError("`sasl` has no password; set `password` or `password_file`".into()))?;
            client.set("sasl.mechanisms", sasl.mechanism.name());
            client.set("sasl.username", &sasl.username);
            client.set("sasl.password", password.reveal());
        }
        let protocol = match (tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        Ok(())
    }
}

/// librdkafka's complaint about a property, without the value where that may be a secret.
pub(super) fn refused(error: &KafkaError) -> SetupError {
    SetupError(match error {
        KafkaError::ClientConfig(_, complaint, property, value) => {
            let secret = ["password", "secret", "pem", "key", "config"].iter().any(|word| property.contains(word));
            if secret && !value.is_empty() && complaint.contains(value.as_str()) {
                format!("`{property}` is refused by librdkafka")
            } else {
                format!("`{property}` is refused by librdkafka: {complaint}")
            }
        }
        KafkaError::ClientCreation(complaint) => format!("librdkafka cannot use these settings: {complaint}"),
        KafkaError::Nul(_) => "a setting contains a NUL character; remove it".to_owned(),
        other => other.to_string(),
    })
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(text)).extract().unwrap()
    }

    fn refusal(text: &str) -> String {
        parse(text).client().unwrap_err().to_string()
    }

    #[test]
    fn brokers_come_as_a_text_or_a_list() {
        for text in [r#"brokers = "a:1, b:2""#, r#"brokers = ["a:1", "b:2"]"#] {
            assert_eq!(parse(text).client().unwrap().get("bootstrap.servers"), Some("a:1,b:2"));
        }
        assert!(refusal(r#"brokers = """#).contains("`brokers`"));
        assert!(refusal("brokers = []").contains("`brokers`"));
    }

    #[test]
    fn security_is_derived_from_tls_and_sasl() {
        let protocol = |text: &str| parse(text).client().unwrap().get("security.protocol").unwrap().to_owned();
        let sasl = "sasl = { mechanism = \"SCRAM-SHA-512\", username = \"u\", password = \"p\" }";
        assert_eq!(protocol("brokers = 'a:1'"), "plaintext");
        assert_eq!(protocol("brokers = 'a:1'\ntls = {}"), "ssl");
        assert_eq!(protocol("brokers = 'a:1'\ntls = { enabled = false }"), "plaintext");
        assert_eq!(protocol(&format!("brokers = 'a:1'\n{sasl}")), "sasl_plaintext");
        assert_eq!(protocol(&format!("brokers = 'a:1'\ntls = {{}}\n{sasl}")), "sasl_ssl");
        assert!(refusal("brokers = 'a:1'\nsasl = { mechanism = 'PLAIN', username = 'u' }").contains("`password_file`"));
    }

    #[test]
    fn a_consumer_reaches_the_same_brokers_as_the_same_user() {
        let config = parse(
            "brokers = 'a:1'\ntls = {}\nsasl = { mechanism = 'PLAIN', username = 'u', password = 'p' }\n[librdkafka]\nsocket.timeout.ms = 1234\n'group.id' = 'g'\n'batch.size' = 9",
        );
        let (producer, consumer) = (config.client().unwrap(), config.consumer().unwrap());
        for property in
            ["bootstrap.servers", "security.protocol", "sasl.username", "sasl.password", "socket.timeout.ms"]
        {
            assert!(consumer.get(property).is_some(), "{property}");
            assert_eq!(consumer.get(property), producer.get(property));
        }
        assert_eq!(consumer.get("enable.auto.commit"), Some("false"));
        assert_ne!(consumer.get("group.id"), Some("g"));
    }

    #[test]
    fn an_unknown_property_is_named_and_a_secret_one_not_shown() {
        assert!(refusal("brokers = 'a:1'\n[librdkafka]\n'no.such' = 1").contains("`no.such`"));
        assert!(refusal("brokers = 'a:1'\n[librdkafka]\n'socket.timeout.ms' = 'soon'").contains("`socket.timeout.ms`"));
        let config = parse("brokers = 'a:1'\n[librdkafka]\n'sasl.password' = 'hunter2'");
        assert!(!format!("{config:?} {:?}", config.client()).contains("hunter2"));
    }
}
