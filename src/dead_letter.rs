//! Messages that a destination refused for good, one JSON object a line, synced before the record counts as settled; and the
//! marks of those that were replayed. Request bodies that could not be decoded lie beside them, see [`undecodable`].

pub mod bodies;
mod lines;
pub mod undecodable;

use crate::event::{Arrival, json};
use crate::sink::Message;
use crate::spool::Record;
use lines::Lines;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The directory within the spool's.
const DIRECTORY: &str = "dead-letters";

/// One sink's file of dead letters.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    path: PathBuf,
    /// Held while a line is written.
    turn: Arc<Mutex<()>>,
}

impl DeadLetters {
    /// Dead letters of `sink` beside the spool in `spool`; the file is made when the first one comes.
    pub fn new(spool: &Path, sink: &str) -> Self {
        Self { path: path(spool, sink), turn: Arc::default() }
    }

    /// Adds one line and syncs it: `time`, `sink`, `reason`, `topic`, `key`, `id`, `conversation`, `offset`, `arrival`,
    /// `ingress`, `headers`, and the event's exact text as the string `payload`.
    pub async fn append(&self, sink: &str, record: &Record, message: &Message, reason: &str) -> io::Result<()> {
        let line = line(sink, record, message, reason);
        let (path, turn) = (self.path.clone(), self.turn.clone());
        tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            // Opened anew for every line: somebody may have moved or removed the file, and a line in it would be lost.
            write(&open(&path)?, &line)
        })
        .await
        .map_err(io::Error::other)?
    }
}

/// A dead letter as it is read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// When it was written, RFC 3339.
    pub time: String,
    /// The sink whose destination refused the message.
    pub sink: String,
    /// Why.
    pub reason: String,
    /// Where the message was to go.
    pub topic: String,
    /// Its key.
    pub key: String,
    /// The event's identity.
    pub id: String,
    /// The event's conversation.
    pub conversation: String,
    /// When the event arrived, RFC 3339.
    pub arrival: String,
    /// The record's offset.
    pub offset: u64,
    /// The message's headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The route that the event came by.
    #[serde(default = "default_ingress")]
    pub ingress: String,
    /// The event's exact text.
    pub payload: String,
}

/// What was written before there were routes came by this one.
fn default_ingress() -> String {
    crate::event::DEFAULT_INGRESS.into()
}

/// A line in the file of marks.
#[derive(Deserialize)]
struct Mark {
    offset: u64,
    id: String,
}

/// What tells a letter from all others of its sink, in little memory: offset and event id.
type Key = (u64, u128);

fn key(offset: u64, id: &str) -> Key {
    (offset, u128::from_str_radix(id, 16).unwrap_or_default())
}

/// What was read, and from where.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<T> {
    /// What the line says.
    pub item: T,
    /// Whether it was replayed.
    pub replayed: bool,
    /// The line as it stands in the file, without its line break.
    pub line: Vec<u8>,
}

/// The dead letters of one sink in the order in which they were written. A letter that a crash caused to be written twice
/// appears once; lines that a crash cut off are left out.
#[derive(Debug)]
pub struct Letters {
    lines: Lines,
    replayed: HashSet<Key>,
    seen: HashSet<Key>,
}

impl Letters {
    /// Those that `sink` has at this moment.
    pub fn of(spool: &Path, sink: &str) -> io::Result<Self> {
        let mut marks = Lines::open(&marks_path(spool, sink))?;
        let mut replayed = HashSet::new();
        while let Some((mark, _)) = marks.read_next::<Mark>()? {
            replayed.insert(key(mark.offset, &mark.id));
        }
        Ok(Self { lines: Lines::open(&path(spool, sink))?, replayed, seen: HashSet::new() })
    }

    /// The next one.
    pub fn read_next(&mut self) -> io::Result<Option<Found<DeadLetter>>> {
        while let Some((letter, line)) = self.lines.read_next::<DeadLetter>()? {
            let key = key(letter.offset, &letter.id);
            if self.seen.insert(key) {
                return Ok(Some(Found { replayed: self.replayed.contains(&key), line: line.to_vec(), item: letter }));
            }
        }
        Ok(None)
    }

    /// How many letters were come upon that are unreadable.
    pub fn damaged(&self) -> u64 {
        self.lines.damaged()
    }
}

/// The sinks that have dead letters.
pub fn sinks(spool: &Path) -> io::Result<Vec<String>> {
    let mut sinks = Vec::new();
    let dir = match std::fs::read_dir(spool.join(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sinks),
        other => other?,
    };
    for entry in dir {
        let name = entry?.file_name().into_string().unwrap_or_default();
        sinks.extend(name.strip_suffix(".ndjson").map(str::to_owned));
    }
    sinks.sort();
    Ok(sinks)
}

/// Notes durably that the letters with these offsets and ids were replayed.
pub fn mark_replayed(spool: &Path, sink: &str, letters: &[(u64, String)]) -> io::Result<()> {
    let mut text = String::new();
    for (offset, id) in letters {
        let mark = serde_json::json!({ "offset": offset, "id": id, "time": Arrival::now().to_string() });
        text.push_str(&format!("{mark}\n"));
    }
    write(&open(&marks_path(spool, sink))?, &text)
}

fn path(spool: &Path, sink: &str) -> PathBuf {
    spool.join(DIRECTORY).join(format!("{sink}.ndjson"))
}

fn marks_path(spool: &Path, sink: &str) -> PathBuf {
    spool.join(DIRECTORY).join(format!("{sink}.replayed"))
}

fn open(path: &Path) -> io::Result<File> {
    let dir = path.parent().unwrap_or(path);
    lines::make_private(dir)?;
    let mut file = lines::private().create(true).open(path)?;
    if file.metadata()?.len() == 0 {
        lines::sync_names(dir, 2)?;
    } else {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            // A crash cut the last line off. It was not acknowledged; the next one begins on a line of its own.
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

fn write(mut file: &File, line: &str) -> io::Result<()> {
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

fn line(sink: &str, record: &Record, message: &Message, reason: &str) -> String {
    let event = &record.event;
    let mut line = String::with_capacity(event.payload().len() + 1024);
    let text = |name: &str, value: &str, line: &mut String| {
        line.push(if line.is_empty() { '{' } else { ',' });
        json::write_string(name, line);
        line.push(':');
        json::write_string(value, line);
    };
    text("time", &Arrival::now().to_string(), &mut line);
    text("sink", sink, &mut line);
    text("reason", reason, &mut line);
    text("topic", message.topic(), &mut line);
    text("key", message.key(), &mut line);
    text("id", &event.id().to_string(), &mut line);
    text("conversation", event.conversation(), &mut line);
    text("arrival", &event.arrival().to_string(), &mut line);
    text("ingress", event.ingress(), &mut line);
    line.push_str(&format!(",\"offset\":{},\"headers\":{{", record.offset));
    for (index, (name, value)) in message.headers().enumerate() {
        if index > 0 {
            line.push(',');
        }
        json::write_string(name, &mut line);
        line.push(':');
        json::write_string(value, &mut line);
    }
    line.push('}');
    text("payload", event.payload(), &mut line);
    line.push_str("}\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[tokio::test]
    async fn a_dead_letter_is_one_line_that_holds_everything_and_a_torn_one_stays_alone() {
        let dir = tempfile::tempdir().unwrap();
        let payload = "{\"team\":\"a\\nb\",\n\"conversation_uuid\":\"c\"}";
        let event = Event::parse(payload, 9, Arrival(1_634_721_099_442)).unwrap();
        let message = Message::of(event.id(), event.payload().clone(), "t", "a\nb/c", "c").with_header("ce_id", "x");
        let record = Record { offset: 17, target: None, event };
        let path = dir.path().join("dead-letters/kafka.ndjson");
        DeadLetters::new(dir.path(), "kafka").append("kafka", &record, &message, "too \"large\"").await.unwrap();
        std::fs::write(&path, [std::fs::read(&path).unwrap(), b"{\"torn".to_vec()].concat()).unwrap();
        let letters = DeadLetters::new(dir.path(), "kafka");
        letters.append("kafka", &record, &message, "again").await.unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[1]), (3, "{\"torn"));
        let first: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(first["reason"], "too \"large\"");
        assert_eq!(first["payload"], payload);
        assert_eq!(first["offset"], 17);
        assert_eq!(first["key"], "a\nb/c");
        assert_eq!(first["arrival"], "2021-10-20T09:11:39.442Z");
        assert_eq!(first["headers"]["ce_id"], "x");
        assert_eq!(first["ingress"], "default");
        assert_eq!(serde_json::from_str::<serde_json::Value>(lines[2]).unwrap()["reason"], "again");

        std::fs::rename(&path, dir.path().join("rotated")).unwrap();
        letters.append("kafka", &record, &message, "after rotation").await.unwrap();
        let mut letters = Letters::of(dir.path(), "kafka").unwrap();
        let only = letters.read_next().unwrap().unwrap();
        assert_eq!(only.item.reason, "after rotation");
        assert_eq!(only.item.headers["ce_id"], "x");
        assert_eq!((letters.read_next().unwrap(), letters.damaged()), (None, 0));
    }
}
