//! The metrics that every Prometheus client library has of its process
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>), read from `/proc` when they are asked for.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::Resource;
use std::fmt;
use std::fs;
use std::time::SystemTime;

/// This process. Without `/proc`, of which containers and Linux hosts have one, only its start is known.
#[derive(Debug)]
pub struct Process {
    started: SystemTime,
}

impl Default for Process {
    fn default() -> Self {
        Self { started: SystemTime::now() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
            }
            None => Ok(()),
        };
        let [virtual_bytes, resident_bytes] = memory_bytes();
        gauge("process_start_time_seconds", "When the process started, in seconds since 1970", Some(started))?;
        gauge("process_resident_memory_bytes", "Memory that the process occupies", resident_bytes)?;
        gauge("process_virtual_memory_bytes", "Memory that the process has addresses for", virtual_bytes)?;
        gauge("process_open_fds", "Open files and sockets", open_files())?;
        let limit = rustix::process::getrlimit(Resource::Nofile).current;
        gauge("process_max_fds", "How many files and sockets may be open", limit.map(|limit| limit as f64))?;
        let Some(seconds) = cpu_seconds() else { return Ok(()) };
        let counter = ConstCounter::new(seconds);
        let help = "Processor time of the process, in user and system mode";
        counter.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?)
    }
}

/// Virtual and resident memory, see `proc_pid_statm(5)`.
fn memory_bytes() -> [Option<f64>; 2] {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split(' ').map(|pages| pages.parse::<f64>().ok());
    let mut bytes = || Some(pages.next()?? * rustix::param::page_size() as f64);
    [bytes(), bytes()]
}

fn open_files() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

/// The 14th and 15th field of `proc_pid_stat(5)`, in clock ticks.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the name in parentheses, may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    Some((fields.next()?? + fields.next()??) / rustix::param::clock_ticks_per_second() as f64)
}
