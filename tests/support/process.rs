//! A child process that dies with its owner, and can be stopped in all the ways a process is stopped in the field.

use std::fs::{File, read_dir, read_to_string};
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, eventually, until};

pub struct Process {
    child: Child,
    /// Where its stderr goes; shown when it dies before its time.
    stderr: PathBuf,
}

impl Process {
    /// Starts the command; what it writes is appended to the two files, which may be one.
    pub fn spawn(command: &mut Command, stdout: &Path, stderr: &Path) -> Self {
        Self::try_spawn(command, stdout, stderr)
            .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()))
    }

    /// The same with a program that may not be there.
    pub fn try_spawn(command: &mut Command, stdout: &Path, stderr: &Path) -> io::Result<Self> {
        let append = |path| File::options().append(true).create(true).open(path).unwrap();
        let child = command.stdin(Stdio::null()).stdout(append(stdout)).stderr(append(stderr)).spawn()?;
        Ok(Self { child, stderr: stderr.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGKILL: the process gets no chance to do anything.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGHUP: the process reads its configuration again.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// SIGUSR2: nats-server goes into lame duck mode.
    pub fn retire(&self) {
        self.signal(Signal::USR2);
    }

    /// SIGSTOP: the process answers nothing, yet its connections stay open. The signal reaches its threads one by one; this waits for
    /// the last.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        let deadline = Instant::now() + PATIENCE;
        while !self.stopped() {
            assert!(Instant::now() < deadline, "the process does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stopped(&self) -> bool {
        let threads = read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        threads.flatten().all(|thread| {
            // The name, in brackets, may hold anything. A thread that is gone runs no more.
            let stat = read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('T'))
        })
    }

    /// SIGCONT
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until the process has ended.
    pub async fn wait(&mut self, within: Duration) -> ExitStatus {
        until(within, "the process has ended", async || self.exited()).await
    }

    /// Waits until the process accepts connections on the loopback port.
    pub async fn listening(&mut self, port: u16) {
        let what = format!("something listens on port {port}");
        eventually(PATIENCE, &what, async || {
            self.assert_running();
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
    }

    /// Panics, showing what the process wrote to stderr, if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exited() {
            panic!("ended early, {status}:\n{}", read_to_string(&self.stderr).unwrap());
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
