//! Apache's own Java consumer, by its console consumer: what it reads, any client of Kafka's makers reads.

use std::time::Duration;

use tokio::task::spawn_blocking;

use super::Consumed;
use super::broker::{USER, java};

// Keys, headers and values are printed as they are, line breaks and all. These do not occur in them.
const FIELD: &str = "\u{1}field\u{2}";
const HEADER: &str = "\u{1}header\u{2}";
const RECORD: &str = "\u{1}record\u{2}";
const NULL: &str = "\u{1}null\u{2}";

/// Reads `count` messages from the beginning of the topic. Panics when they do not come within the time.
pub async fn java_consume(address: &str, topic: &str, count: usize, within: Duration) -> Vec<Consumed> {
    let mut command = java("org.apache.kafka.tools.consumer.ConsoleConsumer");
    command.args(["--bootstrap-server", address, "--topic", topic, "--from-beginning"]);
    command.args(["--max-messages", &count.to_string(), "--timeout-ms", &within.as_millis().to_string()]);
    let separators = [("key.separator", FIELD), ("headers.separator", HEADER), ("line.separator", RECORD)];
    let printed = ["partition", "offset", "headers", "key", "value"].map(|field| format!("print.{field}=true"));
    for property in separators.map(|(name, value)| format!("{name}={value}")).iter().chain(&printed) {
        command.args(["--formatter-property", property]);
    }
    command.args(["--formatter-property", &format!("null.literal={NULL}")]);

    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let consumed: Vec<_> = split(&output.stdout, RECORD).map(parse).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        consumed.len(),
        count,
        "not within {within:?}: {count} messages of {topic}, only {consumed:#?}\n{stderr}"
    );
    consumed
}

/// Allows [`USER`] to write to the topic.
pub async fn allow_writing(address: &str, topic: &str) {
    allow(address, topic, &["Write", "Describe"]).await;
}

/// Allows [`USER`] these operations on the topic.
pub async fn allow(address: &str, topic: &str, operations: &[&str]) {
    let mut command = java("org.apache.kafka.tools.AclCommand");
    command.args(["--bootstrap-server", address, "--add", "--allow-principal", &format!("User:{USER}")]);
    for operation in operations {
        command.args(["--operation", operation]);
    }
    command.args(["--topic", topic]);
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "cannot allow writing: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sets the quota of producers with this client id, in bytes a second, or removes it.
pub async fn limit_producer(address: &str, client_id: &str, bytes_per_second: Option<u32>) {
    let mut command = java("kafka.admin.ConfigCommand");
    command.args(["--bootstrap-server", address, "--alter", "--entity-type", "clients", "--entity-name", client_id]);
    match bytes_per_second {
        Some(rate) => command.arg("--add-config").arg(format!("producer_byte_rate={rate}")),
        None => command.args(["--delete-config", "producer_byte_rate"]),
    };
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "cannot set the quota: {}", String::from_utf8_lossy(&output.stderr));
}

/// `Partition:0 | Offset:7 | name:value, name:value | key | value`
fn parse(record: &[u8]) -> Consumed {
    let fields: Vec<_> = split_between(record, FIELD).collect();
    let &[partition, offset, headers, key, payload] = fields.as_slice() else {
        panic!("not five fields: {}", String::from_utf8_lossy(record));
    };
    let number = |field: &[u8]| str::from_utf8(field).unwrap().split_once(':').unwrap().1.parse::<i64>().unwrap();
    let some = |field: &[u8]| (field != NULL.as_bytes()).then(|| field.to_vec());
    let headers = Some(headers).filter(|&headers| headers != b"NO_HEADERS").into_iter();
    let header = |header: &[u8]| {
        let colon = header.iter().position(|&byte| byte == b':').unwrap();
        (String::from_utf8(header[..colon].to_vec()).unwrap(), some(&header[colon + 1..]).unwrap_or_default())
    };
    Consumed {
        partition: number(partition).try_into().unwrap(),
        offset: number(offset),
        key: some(key),
        headers: headers.flat_map(|headers| split_between(headers, HEADER)).map(header).collect(),
        payload: some(payload).unwrap_or_default(),
    }
}

/// The parts that each end with the mark.
fn split<'a>(bytes: &'a [u8], mark: &'static str) -> impl Iterator<Item = &'a [u8]> {
    split_between(bytes.strip_suffix(mark.as_bytes()).unwrap_or(bytes), mark).filter(|_| !bytes.is_empty())
}

/// The parts between marks.
fn split_between<'a>(bytes: &'a [u8], mark: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let at = bytes.windows(mark.len()).position(|window| window == mark.as_bytes());
        rest = at.map(|at| &bytes[at + mark.len()..]);
        Some(&bytes[..at.unwrap_or(bytes.len())])
    })
}
