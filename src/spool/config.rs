//! `[spool]` and `[spool.retain]`

use crate::setting::{Period, Size};
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// `[spool]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory; made if it does not exist. It has to be on a local disk that keeps every synced write.
    pub path: PathBuf,
    /// How many bytes the segments may take on disk.
    #[schemars(with = "Size")]
    pub max_size: ByteSize,
    /// How large one segment is; space comes free in units of this. An eighth of `max_size`, at most 16 MiB, if not set.
    #[schemars(with = "Option<Size>")]
    pub segment_size: Option<ByteSize>,
    /// How long an append may take. Beyond that the request is refused; events that are stored later all the same are duplicates when
    /// they are sent again. Zero: no deadline.
    #[serde(with = "Period")]
    pub append_timeout: Duration,
    /// For how long a resent event is recognised; zero turns this off.
    #[serde(with = "Period")]
    pub dedup_window: Duration,
    /// How many of the latest events are recognised at the most; each takes about 50 bytes of memory.
    pub dedup_capacity: usize,
    /// For how long an event without `conversation_uuid` finds the conversation of an earlier event of its call; zero turns this off.
    #[serde(with = "Period")]
    pub names_window: Duration,
    /// How many of the latest ids of calls are known at the most; each takes about 90 bytes of memory.
    pub names_capacity: usize,
    /// For how long it is known that a leg has its CDR; zero turns this off.
    #[serde(with = "Period")]
    pub legs_window: Duration,
    /// How many keys of such legs are known at the most; a leg has two, each takes about 50 bytes of memory.
    pub legs_capacity: usize,
    /// Which delivered records are kept for `cdrelay replay`; none if not set.
    pub retain: Option<Retain>,
    /// How many bytes of the latest events that some sink has yet to read are kept in memory.
    #[schemars(with = "Size")]
    pub read_cache: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: "spool".into(),
            max_size: ByteSize::gib(1),
            segment_size: None,
            append_timeout: Duration::from_secs(10),
            dedup_window: Duration::from_secs(45 * 60),
            dedup_capacity: 100_000,
            names_window: Duration::from_secs(24 * 3600),
            names_capacity: 200_000,
            legs_window: Duration::from_secs(7 * 24 * 3600),
            legs_capacity: 50_000,
            retain: None,
            read_cache: ByteSize::mib(4),
        }
    }
}

/// `[spool.retain]`: delivered records stay for this long, up to this size, and as long as the space is not needed.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retain {
    /// How long after its arrival a record is kept.
    #[serde(with = "Period")]
    pub age: Duration,
    /// How many bytes the segments may take for it; all of `max_size` if not set.
    #[schemars(with = "Option<Size>")]
    pub size: Option<ByteSize>,
}

impl Config {
    pub(super) fn segment_size(&self) -> u64 {
        self.segment_size.map_or((self.max_size.as_u64() / 8).min(16 << 20), |size| size.as_u64()).max(4096)
    }
}
