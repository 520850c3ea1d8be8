//! A server on a processor of its own, and what the kernel says it took.

use crate::support::process::Process;
use rustix::param::clock_ticks_per_second;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

/// The processors that servers and load are kept on; the same one where there is only one.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    server: usize,
    load: usize,
}

impl Cores {
    /// The first two that this process may use. The calling thread, and those it starts from now on, get the second.
    pub fn take() -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = allowed.next().unwrap();
        let cores = Self { server, load: allowed.next().unwrap_or(server) };
        pin(cores.load);
        cores
    }

    /// Starts a server on its processor. What it writes to stdout is thrown away.
    pub fn spawn(self, command: &mut Command, stdout: &Path, stderr: &Path) -> Process {
        pin(self.server);
        let process = Process::spawn(command, stdout, stderr);
        pin(self.load);
        process
    }
}

/// Threads and processes inherit this.
fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).unwrap();
}

/// What a process has taken so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Of the processor, in user mode and in the kernel, in microseconds. The kernel counts in ticks, mostly of 10 ms.
    pub user: f64,
    pub system: f64,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The name, in brackets, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let micros = |field: &str| field.parse::<f64>().unwrap() * 1e6 / clock_ticks_per_second() as f64;
        Self { user: micros(fields[11]), system: micros(fields[12]) }
    }
}

/// A line of `/proc/PID/status` that is given in kB, in MiB: `VmRSS`, `VmHWM`.
pub fn memory(pid: u32, line: &str) -> f64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
